"""An executor without a model: the caption of an input is its question, so that tests of jobs take no time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings, ExecutorOptions, ModelChoice
from mindone.pipelines.image_to_text.dataset.state.records import Record
from mindone.pipelines.image_to_text.dataset.state.tasks import Task


class EchoExecutor:
    """Answers every question with itself; an input whose name contains "fail" fails, and one with "stop" ends it.

    The answer ends before "silent" in a question, and what follows "note: " becomes a note. A beginning of the input's
    own comes before the caption.
    """

    def __init__(
        self, *, choice: ModelChoice, settings: CaptioningSettings, options: ExecutorOptions, state: Path
    ) -> None:
        self.choice = choice

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        for task in tasks:
            item = task.item
            blank = Record(
                item.number, item.key, item.source, model=str(self.choice.model), dtype="int8", columns=item.columns
            )
            if "stop" in task.item.source:
                raise OSError("the machine was switched off")
            if "fail" in task.item.source:
                yield Record(**{**vars(blank), "error": "it cannot be read"})
            else:
                count = len(task.prompts)
                begin = f"{task.beginning} " if task.beginning else ""
                yield Record(
                    **{
                        **vars(blank),
                        "captions": tuple(begin + prompt.partition("silent")[0] for prompt in task.prompts),
                        "notes": tuple(prompt.partition("note: ")[2] for prompt in task.prompts if "note: " in prompt),
                        "prompts": task.prompts,
                        "tokens": (3,) * count,
                        "finish_reasons": ("eos",) * count,
                    }
                )
