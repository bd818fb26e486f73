"""RayExecutor: captioning on a Ray cluster. Ray Data hands blocks of tasks to actors that hold one model each.

Every node must see the state directory and the inputs under the same paths, as on a shared file system: actors read
their tasks from it, and store their answers in it, so that they outlive the actors and the driver.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..inference.caption_cache import cache_name, merge_caption_caches
from ..options import CaptioningSettings, ExecutorOptions, ModelChoice
from ..state.paths import TASKS
from ..state.records import Record, record_from_line, to_line
from ..state.tasks import Block, Task, read_tasks, write_tasks

# Ray reads this when it is imported: 0 makes the servers of a local cluster listen on the loopback interface only, as
# they do on Windows and macOS, whose firewalls would ask the user otherwise.
LISTEN_ELSEWHERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

_LISTENS_ELSEWHERE = (
    "this program imported Ray before the job, so the servers that the job starts listen on all addresses of this "
    f"machine, without a password: set {LISTEN_ELSEWHERE}=0 before `import ray`, or start the job in a program of its "
    "own (share4v caption-dataset --engine ray), or set RAY_ADDRESS to a cluster that you protect"
)
logger = logging.getLogger(__name__)


def import_ray() -> Any:
    """Import Ray; a local cluster that is started then is out of reach for other machines.

    If the program imported Ray before, it is too late for that, and `RayExecutor` warns.

    Raises:
        ImportError: it is not installed; the message tells how to install it.
    """
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault(LISTEN_ELSEWHERE, "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "the engine 'ray' needs Ray Data, which is not installed: pip install 'mindone-share4v[ray]'"
        ) from error
    return ray


def listens_elsewhere() -> bool:
    """Return whether servers that Ray starts now accept connections from other machines, as decided at its import."""
    constants = sys.modules.get("ray._private.ray_constants")
    return bool(getattr(constants, "ENABLE_RAY_CLUSTER", True))


class CaptionActor:
    """One actor of Ray Data's pool, with a model of its own."""

    def __init__(self, choice: ModelChoice, settings: CaptioningSettings, tasks: str) -> None:
        from ..inference.captioner import make_captioner  # imports MindSpore: not needed in the driver process

        self.tasks = Path(tasks)
        # Actors have no numbers that stay theirs, and one that was lost may still be running.
        answers = self.tasks.with_name(cache_name(uuid4().hex[:12]))
        is_writable = os.access(answers.parent, os.W_OK)
        self.captioner = make_captioner(choice, settings, answers if is_writable else None)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Caption blocks of tasks, given by their start offsets and counts; records come back in task order."""
        lines = []
        for start, count in zip(block["start"], block["count"], strict=True):
            tasks = read_tasks(self.tasks, Block(int(start), int(count)))
            records = {record.number: record for record in self.captioner.run(tasks)}
            lines += [to_line(records[task.item.number]) for task in tasks]
        return {"record": lines}


class RayExecutor:
    """A pool of actors on the cluster at RAY_ADDRESS, or on a local one that lives as long as this process.

    Ray replaces a lost worker and captions its block again; records of an unfinished block were never written.
    Arguments as in `Executor`.
    """

    def __init__(
        self, *, choice: ModelChoice, settings: CaptioningSettings, options: ExecutorOptions, state: Path
    ) -> None:
        self._choice, self._settings, self._options = choice, settings, options
        self._tasks = state.resolve() / TASKS
        ray = import_ray()
        if not ray.is_initialized():
            # Without an address Ray would join any cluster that a file in /tmp names, whoever wrote it.
            address = os.environ.get("RAY_ADDRESS") or "local"
            if address == "local" and listens_elsewhere():
                logger.warning(_LISTENS_ELSEWHERE)
            # MindSpore sets OMP_NUM_THREADS=1 in what children inherit; Ray sets it to each actor's own CPUs.
            ray.init(address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield records in the order of the tasks.

        Raises:
            RuntimeError: the cluster failed; running the job again resumes it.
        """
        blocks = [asdict(block) for block in write_tasks(self._tasks, tasks, self._options.block)]
        if not blocks:
            return
        merge_caption_caches(self._tasks.parent)  # each actor of each run has a file of its own
        ray = import_ray()
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        records = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
            CaptionActor,
            fn_constructor_args=(self._choice, self._settings, str(self._tasks)),
            batch_size=1,
            num_cpus=self._options.cpus,
            compute=ray.data.ActorPoolStrategy(size=self._options.actors),
        )
        try:
            for row in records.iter_rows():
                yield record_from_line(row["record"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"the Ray cluster failed: {reason}; run the job again to resume it") from error
