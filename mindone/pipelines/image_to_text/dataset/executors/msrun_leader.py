"""MsrunLeader: the executor of rank 0 under `msrun`. It captions too, while the other ranks take blocks of its tasks.

Ranks do not communicate through MindSpore's collective operators; they share the state directory, which every host must
see under the same path. If a rank dies, the leader captions the tasks which that rank had claimed.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from ..inference.caption_cache import cache_name
from ..options import CaptioningSettings, ExecutorOptions, ModelChoice
from ..state.atomic_files import is_locked
from ..state.records import Record, record_from_line
from ..state.regular_files import open_own
from ..state.tasks import Block, Task, read_tasks
from .ranks import current_rank, use_device
from .work_queue import WorkQueue, create_queue

_POLL_SECONDS = 0.5  # between two reads of the other ranks' records
_LIVENESS_SECONDS = 5.0  # between two checks of whether the other ranks are alive
# A rank that is alive but silent for longer is considered stuck. Until then, records of later tasks wait in memory.
_STUCK_SECONDS = 1800.0


class MsrunLeader:
    """Rank 0 of a job under `msrun`; arguments as in `Executor`.

    Raises:
        ValueError: `msrun` did not start this process.
    """

    def __init__(
        self, *, choice: ModelChoice, settings: CaptioningSettings, options: ExecutorOptions, state: Path
    ) -> None:
        from ..inference.captioner import make_captioner  # imports MindSpore: only once there is work to do

        rank = current_rank()
        if rank is None:
            raise ValueError("msrun did not start this process")
        self._state, self._other_ranks = state, range(1, rank.count)
        use_device(rank)
        self.captioner = make_captioner(choice, settings, state / cache_name())

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield the records of all ranks as they arrive."""
        with ExitStack() as stack:
            queue, remaining = create_queue(self._state, tasks, stack)
            for record in self._records(queue, OtherRanks(queue, self._other_ranks)):
                remaining -= 1
                yield record
                if not remaining:
                    return

    def _records(self, queue: WorkQueue, others: OtherRanks) -> Iterator[Record]:
        yield from self._own_records(queue, others)
        yield from others.poll()
        while others.have_claims or others.abandoned or others.any_alive:
            if others.abandoned:
                yield from self._own_records(queue, others)
            time.sleep(_POLL_SECONDS)
            yield from others.poll()

    def _own_records(self, queue: WorkQueue, others: OtherRanks) -> Iterator[Record]:
        """Yield what this rank captions and, in between, what the other ranks have written."""

        def tasks() -> Iterator[Task]:
            while True:
                if others.abandoned:
                    yield others.abandoned.popleft()
                    continue
                block = queue.claim()
                if block is None:
                    return
                yield from read_tasks(queue.tasks, block)

        polled = time.monotonic()
        for record in self.captioner.run(tasks()):
            yield record
            if time.monotonic() - polled > _POLL_SECONDS:
                polled = time.monotonic()
                yield from others.poll()


class OtherRanks:
    """Reads the records of the other ranks and detects ranks that died or are stuck.

    Args:
        queue: of the run.
        ranks: numbers of the other ranks.

    Attributes:
        abandoned: tasks that a dead or stuck rank had claimed and did not finish.
    """

    def __init__(self, queue: WorkQueue, ranks: Iterable[int]) -> None:
        self._queue = queue
        self._offsets = dict.fromkeys(ranks, 0)  # bytes read of each rank's file
        self._claimed: dict[int, dict[int, Task]] = {rank: {} for rank in self._offsets}  # unfinished, by number
        self._last_heard = dict.fromkeys(self._offsets, time.monotonic())
        self._checked_liveness = time.monotonic()
        self.abandoned: deque[Task] = deque()

    @property
    def have_claims(self) -> bool:
        """Whether a rank has claimed tasks that it has not finished."""
        return any(self._claimed.values())

    @property
    def any_alive(self) -> bool:
        """Whether any of them is alive and not stuck."""
        return any(map(self._is_working, self._offsets))

    def poll(self) -> Iterator[Record]:
        """Yield the records written since the last call, and collect the tasks of dead ranks."""
        dead: list[int] = []
        if time.monotonic() - self._checked_liveness > _LIVENESS_SECONDS:
            self._checked_liveness = time.monotonic()
            dead += (rank for rank, claimed in self._claimed.items() if claimed and not self._is_working(rank))
        for rank in self._offsets:
            yield from self._new_records(rank)
        for rank in dead:  # only now: everything that it wrote before it died has been read
            self.abandoned.extend(self._claimed[rank].values())
            self._claimed[rank].clear()

    def _is_working(self, rank: int) -> bool:
        return time.monotonic() - self._last_heard[rank] < _STUCK_SECONDS and is_locked(self._queue.lock_path(rank))

    def _new_records(self, rank: int) -> Iterator[Record]:
        path, claimed = self._queue.records_path(rank), self._claimed[rank]
        if not path.exists():
            return
        with open_own(path) as file:  # reopened every time: a network file system may refresh a file only on open
            file.seek(self._offsets[rank])
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    return
                self._offsets[rank] += len(line)
                self._last_heard[rank] = time.monotonic()
                values = json.loads(line)
                if "block" in values:
                    block = Block(**values["block"])
                    claimed |= {task.item.number: task for task in read_tasks(self._queue.tasks, block)}
                elif claimed.pop(values["number"], None) is not None:
                    yield record_from_line(line)
                # else: the rank was taken for dead, and its task was given to another one
