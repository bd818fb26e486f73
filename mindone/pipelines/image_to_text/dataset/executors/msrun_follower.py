"""What a rank behind the first does under `msrun`: it takes blocks of the first one's tasks, and captions them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from ..inference.caption_cache import cache_name
from ..job import JobError, JobSummary
from ..options import CaptioningSettings, ModelChoice
from ..state.records import to_line
from ..state.resume import is_complete
from ..state.tasks import Task, read_tasks
from .ranks import Rank, use_device
from .work_queue import WorkQueue, current, is_held

_LOOK = 0.3  # seconds between two looks
_GRACE = 30.0  # seconds in which it begins where a job is done, if there is more to do
_PATIENCE = 300.0  # seconds in which the first rank must have begun
_SYNC = 1.0  # seconds after which records are brought to where other hosts see them


def take_share(
    state: Path, rank: Rank, choice: ModelChoice, settings: CaptioningSettings, patience: float = _PATIENCE
) -> JobSummary:
    """Caption blocks of a job until none is left.

    Args:
        state: the job's directory.
        rank: this process; msrun's scheduler has nothing to do.
        choice, settings: as in the first rank.
        patience: seconds in which the first rank must have begun.

    Returns:
        What this rank did.

    Raises:
        JobError: the first rank has ended before its time.
        OSError: a file cannot be written.
    """
    from ..inference.captioner import make_captioner

    begun = time.perf_counter()
    shares = None if rank.is_scheduler else _wait_for(state, patience)
    inputs = failed = tokens = 0
    if shares is not None:
        with FileLock(shares.life(rank.number)), shares.records(rank.number).open("ab", buffering=0) as file:
            use_device(rank)
            captioner, synced = make_captioner(choice, settings, state / cache_name(rank.number)), time.monotonic()
            for record in captioner.run(_tasks(shares, rank.number)):
                file.write(to_line(record).encode())
                if time.monotonic() - synced > _SYNC:
                    synced = time.monotonic()
                    os.fsync(file.fileno())
                inputs += 1
                failed += record.error is not None
                tokens += sum(record.tokens)
            os.fsync(file.fileno())
    return JobSummary(inputs, inputs - failed, 0, failed, time.perf_counter() - begun, tokens, is_share=True)


def _wait_for(state: Path, patience: float) -> WorkQueue | None:
    """Return the run that the first rank leads; None where it has nothing to share."""
    begun, is_led, is_checked = time.monotonic(), False, False
    while True:
        shares = current(state)
        if shares is not None:
            return shares
        waited = time.monotonic() - begun
        if is_held(state / "lock"):
            is_led = True  # it lists the inputs, which may take long
        elif is_led or waited > patience:
            return None
        elif waited > _GRACE and not is_checked:  # once: it counts the lines of large files
            is_checked = True
            if is_complete(state):
                return None
        time.sleep(_LOOK)


def _tasks(shares: WorkQueue, rank: int) -> Iterator[Task]:
    while True:
        if shares.is_there and not shares.is_led:
            raise JobError("the first rank has ended: run the command again to go on")
        block = shares.claim(shares.records(rank))
        if block is None:
            return
        yield from read_tasks(shares.tasks, block)
