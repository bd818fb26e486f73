"""Threads and processes: what may use a model, and when.

MindSpore compiles and runs one graph at a time: in 2.7 and 2.10, two threads that compile at once give errors or a
segmentation fault, and two that run graphs at once, even of different models, wait for each other forever. So there is
one lock for the process, `MINDSPORE`. It is held for one step of a generation, never while the caller does something
else with what a stream has yielded; preparing inputs (images, tokens) needs no lock. The models of one process take
turns, step by step. That loses little, because each kernel uses all CPUs.

A process made by `os.fork` has a copy of the memory, but of the threads only the one that called it. MindSpore and
OpenMP would wait forever for the others, so models refuse to run there.
"""

from __future__ import annotations

import os
from collections import deque
from threading import Lock, get_ident
from types import TracebackType

_FORKED = (
    "this process was forked from one that uses a model, and MindSpore's threads do not survive a fork: start it with "
    "multiprocessing.get_context('spawn'), or as a new program, and load the model there"
)


class ForkError(RuntimeError):
    """A model was used in a process that was forked from the one that loaded it."""


class _Process:
    """The process that uses models: the first one that loads one.

    Attributes:
        id: its process id; None before a model was loaded.
    """

    id: int | None = None


def claim_process() -> None:
    """Note that this process uses models; called when one is built.

    Raises:
        ForkError: this process was forked from one that does.
    """
    if _Process.id is None:
        _Process.id = os.getpid()
    check_process()


def is_forked() -> bool:
    """Return whether this process was forked from one that uses models."""
    return _Process.id not in (None, os.getpid())


def check_process() -> None:
    """Check that MindSpore's threads exist in this process; to be called before any lock is waited for.

    Raises:
        ForkError: this process was forked from one that uses models.
    """
    if is_forked():
        raise ForkError(_FORKED)


class FairLock:
    """A re-entrant lock that threads get in the order in which they asked for it.

    With `threading.RLock`, a thread that releases the lock and takes it again at once, as `generate` does between two
    tokens, would keep all other threads waiting until its answer is complete.

    Example:
        >>> from mindone.models.share4v.concurrency import FairLock
        >>> lock = FairLock()
        >>> with lock, lock:
        ...     pass
    """

    def __init__(self) -> None:
        self._mutex = Lock()  # guards the fields below; held for a few instructions only
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, Lock]] = deque()  # threads, each with a lock that it sleeps on

    def __enter__(self) -> FairLock:
        me = get_ident()
        if self._owner == me:
            self._depth += 1
            return self
        turn = Lock()
        turn.acquire()
        entry = me, turn
        with self._mutex:  # makes no object: that might start the garbage collector, which may need this lock
            if self._owner is None:
                self._owner, self._depth = me, 1
                return self
            self._waiting.append(entry)
        try:
            turn.acquire()  # until `_pass_on` releases it
        except BaseException:  # Ctrl-C
            with self._mutex:
                if self._owner == me:
                    self._pass_on()
                else:
                    self._waiting.remove(entry)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            with self._mutex:
                self._pass_on()

    def _pass_on(self) -> None:
        """Make the next waiting thread the owner."""
        self._owner = None
        if self._waiting:
            self._owner, turn = self._waiting.popleft()
            self._depth = 1
            turn.release()


# Held by the thread that uses MindSpore.
MINDSPORE = FairLock()
