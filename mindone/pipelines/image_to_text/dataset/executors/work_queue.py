"""WorkQueue: a file of tasks from which the processes of one job each take the next block."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from filelock import FileLock

from ..state.atomic_files import is_locked, partial_path
from ..state.paths import QUEUE
from ..state.records import JobError
from ..state.regular_files import create_own, open_own, rename_own
from ..state.signature import is_queue_signed, sign_queue
from ..state.tasks import Block, Task, write_tasks

_SIGNATURE = "signature"
_BLOCK = 8  # tasks per claim; small, so that no rank is left with much work when the others have finished


class WorkQueue:
    """The tasks of one run, in a directory that all its processes see.

    Each run has a directory of its own, so that files left by a crashed run are never mistaken for the next run's. The
    leader holds a file lock while the run lasts; the OS releases it if the leader dies.

    Args:
        directory: the run's directory, as `create_queue` made it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tasks = directory / "tasks.jsonl"
        self._next = directory / "next"  # offset of the first task that nobody has claimed

    @property
    def exists(self) -> bool:
        """Whether the run has neither finished nor been removed."""
        return self._next.exists()

    @property
    def has_leader(self) -> bool:
        """Whether the leader is alive."""
        return is_locked(self.directory / "leader.lock")

    def records_path(self, rank: int) -> Path:
        """File in which a rank writes the blocks that it claims and the records that it makes."""
        return self.directory / f"records-{rank}.jsonl"

    def lock_path(self, rank: int) -> Path:
        """Lock file that a rank holds while it is alive."""
        return self.directory / f"rank-{rank}.lock"

    def claim(self, log: Path | None = None) -> Block | None:
        """Take the next block of tasks; return None if no task is left or the run is over.

        Args:
            log: file to which a line about the block is appended before any other process can take the next one.

        Raises:
            OSError: a file cannot be read or written.
        """
        try:
            with FileLock(self.directory / "claims.lock"):
                return self._claim(log)
        except FileNotFoundError:
            if self.exists:
                raise
            return None  # `remove_queues` takes away what says that there is a run first, and may be anywhere behind it

    def _claim(self, log: Path | None) -> Block | None:
        with open_own(self._next) as file:
            start = int(file.read())
        with open_own(self.tasks) as file:
            file.seek(start)
            block = Block(start, sum(1 for _ in islice(iter(file.readline, b""), _BLOCK)))
            end = file.tell()
        if not block.count:
            return None
        if log is not None:  # before `next` moves on: otherwise a crash here would lose the block
            with open_own(log, "ab+") as file:
                file.write(f"{json.dumps({'block': asdict(block)})}\n".encode())
        _write_atomically(self._next, str(end))
        return block


def create_queue(state: Path, tasks: Iterable[Task], stack: ExitStack) -> tuple[WorkQueue, int]:
    """Start a run: write its tasks where other processes find them, and lead it until `stack` is closed.

    Returns:
        The queue, and its number of tasks.

    Raises:
        OSError: the files cannot be written.
    """
    remove_queues(state)
    queue = WorkQueue(state / QUEUE / uuid.uuid4().hex)
    queue.directory.mkdir(parents=True)
    stack.enter_context(FileLock(queue.directory / "leader.lock"))
    stack.callback(remove_queues, state)  # runs before the lock is released: no rank may find a run without a leader
    count = sum(block.count for block in write_tasks(queue.tasks, tasks, 1024))
    _write_atomically(queue.directory / _SIGNATURE, sign_queue(state, queue.directory.name))
    _write_atomically(queue.directory / "next", "0")  # from here on, other ranks see the run
    return queue, count


def find_queue(state: Path) -> WorkQueue | None:
    """Return the queue of the run in progress, if there is one.

    Raises:
        JobError: somebody else's job leads it, or the hosts have different keys.
    """
    for path in (state / QUEUE).glob("*/next"):
        queue = WorkQueue(path.parent)
        if queue.has_leader:
            try:
                _check_signature(state, queue)
            except JobError:
                if not queue.exists:  # it has just ended
                    continue
                raise
            return queue
    return None


def _check_signature(state: Path, queue: WorkQueue) -> None:
    try:
        with open_own(queue.directory / _SIGNATURE) as file:
            signature = file.read(1024).decode("ascii", "replace")
    except FileNotFoundError:
        signature = ""
    if not is_queue_signed(state, queue.directory.name, signature):
        raise JobError(
            f"{queue.directory} is not led by a job of yours, or its leader has another key: set SHARE4V_HOME to one "
            "directory that all hosts of msrun share"
        )


def remove_queues(state: Path) -> None:
    """Remove the files of earlier runs; no run may be in progress.

    First what says that a run exists: a rank that looks meanwhile finds none, in place of one without a leader.
    """
    for path in (state / QUEUE).glob("*/next"):
        path.unlink(missing_ok=True)
    shutil.rmtree(state / QUEUE, ignore_errors=True)


def _write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step for its readers; unlike `atomic_write`, without waiting for the disk."""
    partial = partial_path(path)
    with create_own(partial) as file:
        file.write(text.encode())
    rename_own(partial, path)
