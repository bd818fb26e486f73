"""An executor without a model, for tests of what a job does with records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings, ExecutorOptions, ModelChoice
from mindone.pipelines.image_to_text.dataset.state.records import Record
from mindone.pipelines.image_to_text.dataset.state.tasks import Task


class FakeExecutor:
    """Uses a file's text as its caption; a file that contains "broken" fails.

    Attributes:
        asked: keys of all tasks since it was last cleared.
        most: number of tasks after which a killed process is simulated; None for never.
    """

    asked: ClassVar[list[str]] = []
    most: ClassVar[int | None] = None

    def __init__(
        self, *, choice: ModelChoice, settings: CaptioningSettings, options: ExecutorOptions, state: Path
    ) -> None:
        self.opening = settings.begin_with

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        for count, task in enumerate(tasks):
            if count == self.most:
                raise KeyboardInterrupt
            item = task.item
            common: dict[str, Any] = {"prompts": task.prompts, "columns": item.columns}
            if item.locator["kind"] == "failure":
                yield Record(item.number, item.key, item.source, error=item.locator["error"], **common)
                continue
            self.asked.append(item.key)
            text = Path(item.path or "").read_text()
            if "broken" in text:
                yield Record(item.number, item.key, item.source, error="broken", **common)
            else:
                captions = tuple(f"{self.opening}{text} ({prompt})" for prompt in task.prompts)
                tokens = (3,) * len(captions)
                yield Record(item.number, item.key, item.source, captions, tokens=tokens, seconds=1.0, **common)
