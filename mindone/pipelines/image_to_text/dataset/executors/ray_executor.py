"""Captioning on a Ray cluster: Ray Data hands blocks of tasks to actors that hold a model each.

The job's directory and the inputs must be seen under the same paths by every node, as on a shared file system.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..options import CaptioningSettings, ModelChoice
from ..state.records import Record, from_line, to_line
from ..state.tasks import Block, Task, read_tasks, write_tasks
from .base import EngineOptions

try:
    import ray
except ImportError as error:
    raise ImportError(
        "the engine 'ray' needs Ray Data, which is not installed: pip install 'mindone-share4v[ray]'"
    ) from error


class CaptionActor:
    """An actor of Ray Data's pool: one model."""

    def __init__(self, choice: ModelChoice, settings: CaptioningSettings, tasks: str) -> None:
        from ..inference.captioner import make_captioner

        self.captioner = make_captioner(choice, settings)
        self.tasks = Path(tasks)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Caption blocks of tasks, given by where they begin and how many they are; records come in their order."""
        lines = []
        for start, count in zip(block["start"], block["count"], strict=True):
            tasks = read_tasks(self.tasks, Block(int(start), int(count)))
            records = {record.number: record for record in self.captioner.run(tasks)}
            lines += [to_line(records[task.item.number]) for task in tasks]
        return {"record": lines}


class RayEngine:
    """A pool of actors on the cluster that RAY_ADDRESS names, or on one that is started here and ends with the process.

    A worker that is lost is replaced, and its block of tasks is captioned again; nothing of it was written.
    """

    def __init__(self, choice: ModelChoice, settings: CaptioningSettings, options: EngineOptions, state: Path) -> None:
        self._arguments = choice, settings, str(state.resolve() / "tasks.jsonl")
        self._options = options
        if not ray.is_initialized():
            # MindSpore sets OMP_NUM_THREADS=1 in what children inherit; Ray sets it to each actor's own CPUs.
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield records in the tasks' order."""
        blocks = [asdict(block) for block in write_tasks(Path(self._arguments[2]), tasks, self._options.block)]
        if not blocks:
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        records = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
            CaptionActor,
            fn_constructor_args=self._arguments,
            batch_size=1,
            num_cpus=self._options.cpus,
            compute=ray.data.ActorPoolStrategy(size=self._options.actors),
        )
        try:
            for row in records.iter_rows():
                yield from_line(row["record"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"the Ray cluster gave up: {reason}; run the command again to go on") from error
