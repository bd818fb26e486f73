"""What ranks other than 0 do under `msrun`: claim blocks of the leader's tasks and caption them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from ..inference.caption_cache import cache_name
from ..options import CaptioningSettings, ModelChoice
from ..state.atomic_files import is_locked
from ..state.paths import LOCK
from ..state.records import JobError, JobSummary, to_line
from ..state.regular_files import open_own
from ..state.resume import is_complete
from ..state.tasks import Task, read_tasks
from .ranks import Rank, use_device
from .work_queue import WorkQueue, find_queue

_POLL_SECONDS = 0.3  # between two looks for the leader's queue
_FINISHED_SECONDS = 30.0  # if the job is complete and the leader has not started within this time, there is no work
_START_SECONDS = 300.0  # time within which the leader must have started
_SYNC_SECONDS = 1.0  # between two fsyncs, which make records visible on other hosts


def run_follower(
    *,
    choice: ModelChoice,
    settings: CaptioningSettings,
    state: Path,
    rank: Rank,
    start_timeout: float = _START_SECONDS,
) -> JobSummary:
    """Caption blocks of a job's tasks until none is left.

    Args:
        choice, settings: as in the leader.
        state: the job's state directory.
        rank: of this process; msrun's scheduler has nothing to do.
        start_timeout: seconds within which the leader must have started.

    Returns:
        What this rank did.

    Raises:
        JobError: the leader died before the job was done.
        OSError: a file cannot be written.
    """
    from ..inference.captioner import make_captioner  # imports MindSpore: not needed in the leader's checks

    started = time.perf_counter()
    queue = None if rank.is_scheduler else _wait_for_queue(state, start_timeout)
    inputs = failed = tokens = 0
    if queue is not None:
        path = queue.records_path(rank.number)
        with FileLock(queue.lock_path(rank.number)), open_own(path, "ab+") as file:
            use_device(rank)
            captioner = make_captioner(choice, settings, state / cache_name(rank.number))
            synced = time.monotonic()
            for record in captioner.run(_tasks(queue, rank.number)):
                file.write(to_line(record).encode())
                if time.monotonic() - synced > _SYNC_SECONDS:
                    synced = time.monotonic()
                    os.fsync(file.fileno())
                inputs += 1
                failed += record.error is not None
                tokens += record.new_tokens
            os.fsync(file.fileno())
    return JobSummary(
        inputs=inputs,
        captioned=inputs - failed,
        kept=0,
        failed=failed,
        seconds=time.perf_counter() - started,
        tokens=tokens,
        is_share=True,
    )


def _wait_for_queue(state: Path, timeout: float) -> WorkQueue | None:
    """Return the queue of the leader's run, or None if the leader has no work to share."""
    started, leader_seen, completion_checked = time.monotonic(), False, False
    while True:
        queue = find_queue(state)
        if queue is not None:
            return queue
        waited = time.monotonic() - started
        if is_locked(state / LOCK):
            leader_seen = True  # it is listing the inputs, which may take long
        elif leader_seen or waited > timeout:
            return None
        elif waited > _FINISHED_SECONDS and not completion_checked:  # checked once: it counts the lines of large files
            completion_checked = True
            if is_complete(state):
                return None
        time.sleep(_POLL_SECONDS)


def _tasks(queue: WorkQueue, rank: int) -> Iterator[Task]:
    while True:
        if queue.exists and not queue.has_leader and queue.exists:  # it may have ended between the two looks
            raise JobError("the leader (rank 0) has ended: run the job again to resume it")
        block = queue.claim(queue.records_path(rank))
        if block is None:
            return
        yield from read_tasks(queue.tasks, block)
