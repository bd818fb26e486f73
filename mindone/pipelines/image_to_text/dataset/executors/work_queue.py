"""What the processes of one job share: a file of tasks, of which each takes the next few for itself."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from filelock import FileLock

from ..state.atomic_files import partial_path
from ..state.tasks import Block, Task, write_tasks

_DIRECTORY = "shares"
_BLOCK = 8  # tasks that are taken at a time: few, so that no process has much left when the others are done


class WorkQueue:
    """One run's tasks, in a directory that all its processes see.

    A run has a directory of its own, so that what a broken run left behind is never taken for its successor's. The
    process that leads holds a lock for as long as the run is to go on; the system takes locks from who dies.

    Args:
        directory: of the run, as `publish` made it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tasks = directory / "tasks.jsonl"
        self._next = directory / "next"

    @property
    def is_there(self) -> bool:
        """Whether the run was neither ended nor cleared away."""
        return self._next.exists()

    @property
    def is_led(self) -> bool:
        """Whether the process that leads is alive."""
        return is_held(self.directory / "leader.lock")

    def records(self, rank: int) -> Path:
        """File in which a rank notes the blocks that it takes and the records that it makes."""
        return self.directory / f"records-{rank}.jsonl"

    def life(self, rank: int) -> Path:
        """Lock that a rank holds while it lives."""
        return self.directory / f"rank-{rank}.lock"

    def claim(self, claimed: Path | None = None) -> Block | None:
        """Return tasks that from now on are the caller's; None where none is left, or the run is over.

        Args:
            claimed: file to which a line about them is added, before anybody else can take the next.

        Raises:
            OSError: a file cannot be read or written.
        """
        with FileLock(self.directory / "claims.lock"):
            try:
                start = int(self._next.read_text())
            except FileNotFoundError:
                return None
            with self.tasks.open("rb") as file:
                file.seek(start)
                block = Block(start, sum(1 for _ in islice(iter(file.readline, b""), _BLOCK)))
                end = file.tell()
            if not block.count:
                return None
            if claimed is not None:  # before the next line: tasks that no file names would be done by nobody
                with claimed.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"block": asdict(block)}) + "\n")
            _put(self._next, str(end))
        return block


def publish(state: Path, tasks: Iterable[Task], stack: ExitStack) -> tuple[WorkQueue, int]:
    """Begin a run: write its tasks where other processes find them, and lead it until `stack` is closed.

    Returns:
        The run, and how many tasks it has.

    Raises:
        OSError: the files cannot be written.
    """
    clear(state)
    shares = WorkQueue(state / _DIRECTORY / uuid.uuid4().hex)
    shares.directory.mkdir(parents=True)
    stack.enter_context(FileLock(shares.directory / "leader.lock"))
    stack.callback(clear, state)  # before the lock goes: a run that nobody leads any more must not be found
    count = sum(block.count for block in write_tasks(shares.tasks, tasks, 1024))
    _put(shares.directory / "next", "0")  # with it the run is there
    return shares, count


def current(state: Path) -> WorkQueue | None:
    """Return the run that is going on, if there is one."""
    for place in (state / _DIRECTORY).glob("*/next"):
        shares = WorkQueue(place.parent)
        if shares.is_led:
            return shares
    return None


def clear(state: Path) -> None:
    """Remove what runs left behind; none must be going on."""
    shutil.rmtree(state / _DIRECTORY, ignore_errors=True)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock; any number of processes may look at once, and none takes another for the holder.

    Those who take a lock must wait a moment for those who look.
    """
    import fcntl  # msrun is there on Linux alone

    try:
        place = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(place, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(place)
    return False


def _put(path: Path, text: str) -> None:
    """Write a file that readers see whole; unlike `atomic_write` it need not outlive a power cut."""
    partial = partial_path(path)
    partial.write_text(text)
    partial.replace(path)
