"""LocalExecutor: one model in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..inference.caption_cache import cache_name
from ..options import CaptioningSettings, ExecutorOptions, ModelChoice
from ..state.records import Record
from ..state.tasks import Task


class LocalExecutor:
    """Captions all tasks with one model in this process; arguments as in `Executor`."""

    def __init__(
        self, *, choice: ModelChoice, settings: CaptioningSettings, options: ExecutorOptions, state: Path
    ) -> None:
        from ..inference.captioner import make_captioner  # imports MindSpore: only once there is work to do

        self.captioner = make_captioner(choice, settings, state / cache_name())

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield records in the order in which they are finished."""
        return self.captioner.run(tasks)
