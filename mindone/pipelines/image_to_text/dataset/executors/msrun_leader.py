"""Captioning under `msrun`: the first rank leads the job and captions too, the others take blocks of its tasks.

Ranks do not talk to each other by MindSpore's operators; they share the job's directory, which every host must see
under the same path. A rank that ends early is no harm: what it had taken is done by the first.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from ..inference.caption_cache import cache_name
from ..options import CaptioningSettings, ModelChoice
from ..state.records import Record, from_line
from ..state.tasks import Block, Task, read_tasks
from .base import EngineOptions
from .ranks import current_rank, use_device
from .work_queue import WorkQueue, is_held, publish

_LOOK = 0.5  # seconds between two looks at what other ranks made
_LOOK_FOR_LIFE = 5.0  # and at whether they live
# Seconds after which a rank that lives is taken for stuck. Until then, what the others make waits in memory.
_STUCK = 1800.0


class MsrunEngine:
    """The first rank.

    Raises:
        ValueError: `msrun` did not start this process.
    """

    def __init__(self, choice: ModelChoice, settings: CaptioningSettings, options: EngineOptions, state: Path) -> None:
        from ..inference.captioner import make_captioner

        rank = current_rank()
        if rank is None:
            raise ValueError("msrun did not start this process")
        self._state, self._others = state, range(1, rank.count)
        use_device(rank)
        self.captioner = make_captioner(choice, settings, state / cache_name())

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield records as they come, those of the other ranks among them."""
        with ExitStack() as stack:
            shares, left = publish(self._state, tasks, stack)
            for record in self._records(shares, _OtherRanks(shares, self._others)):
                left -= 1
                yield record
                if not left:
                    return

    def _records(self, shares: WorkQueue, others: _OtherRanks) -> Iterator[Record]:
        yield from self._own(shares, others)
        yield from others.look()
        while others.owe or others.lost or others.live:
            if others.lost:
                yield from self._own(shares, others)
            time.sleep(_LOOK)
            yield from others.look()

    def _own(self, shares: WorkQueue, others: _OtherRanks) -> Iterator[Record]:
        """Yield what this rank captions, and meanwhile what the others do."""

        def tasks() -> Iterator[Task]:
            while True:
                if others.lost:
                    yield others.lost.popleft()
                    continue
                block = shares.claim()
                if block is None:
                    return
                yield from read_tasks(shares.tasks, block)

        looked = time.monotonic()
        for record in self.captioner.run(tasks()):
            yield record
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                yield from others.look()


class _OtherRanks:
    """Reads what other ranks write, and finds out which of them died over it.

    Attributes:
        lost: tasks that a dead rank had taken.
    """

    def __init__(self, shares: WorkQueue, ranks: Iterable[int]) -> None:
        self._shares = shares
        self._read = dict.fromkeys(ranks, 0)  # bytes of each rank's file
        self._owed: dict[int, dict[int, Task]] = {rank: {} for rank in self._read}
        self._heard = dict.fromkeys(self._read, time.monotonic())  # when each wrote something
        self._looked_for_life = time.monotonic()
        self.lost: deque[Task] = deque()

    @property
    def owe(self) -> bool:
        """Whether a rank has taken what it has not given back."""
        return any(self._owed.values())

    @property
    def live(self) -> bool:
        """Whether any of them is at work."""
        return any(map(self._works, self._read))

    def look(self) -> Iterator[Record]:
        """Yield what was made since the last look."""
        dead: list[int] = []
        if time.monotonic() - self._looked_for_life > _LOOK_FOR_LIFE:
            self._looked_for_life = time.monotonic()
            dead += (rank for rank, owed in self._owed.items() if owed and not self._works(rank))
        for rank in self._read:
            yield from self._new(rank)
        for rank in dead:  # all that it ever wrote has been read
            self.lost.extend(self._owed[rank].values())
            self._owed[rank].clear()

    def _works(self, rank: int) -> bool:
        return time.monotonic() - self._heard[rank] < _STUCK and is_held(self._shares.life(rank))

    def _new(self, rank: int) -> Iterator[Record]:
        path, owed = self._shares.records(rank), self._owed[rank]
        if not path.exists():
            return
        with path.open("rb") as file:  # anew each time, since a network's file system may look at it only then
            file.seek(self._read[rank])
            for line in file:
                if not line.endswith(b"\n"):  # being written
                    return
                self._read[rank] += len(line)
                self._heard[rank] = time.monotonic()
                values = json.loads(line)
                if "block" in values:
                    owed |= {
                        task.item.number: task for task in read_tasks(self._shares.tasks, Block(**values["block"]))
                    }
                elif owed.pop(values["number"], None) is not None:  # else another made it, after a false alarm
                    yield from_line(line)
