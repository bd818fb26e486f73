"""Threads and processes: what may use a model, and when.

Each model has a lock, which a thread holds for one step of a generation, never while the caller does something else
with what a stream has yielded; preparing inputs (images, tokens) needs no lock. Models on the CPU kernels compute at
the same time: the kernels do not hold Python's global lock, and such a model runs no graph of MindSpore.

MindSpore itself compiles and runs one graph at a time. In 2.7 and 2.10, two threads that compile at once give errors or
a segmentation fault, and two that run graphs at once, even graphs of different models that were compiled before, wait
for each other forever: one waits for Python's global lock, and the other one holds it and waits for the first. So there
is one more lock for the process, `MINDSPORE`, held by whoever uses MindSpore's runtime: models with components made of
MindSpore's operators take turns, step by step. Such a model takes it before its own lock, so that a thread which waits
for its turn holds no model that the thread before it may need.

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

    MindSpore writes a file about each graph that it fails to compile, by default to a folder `rank_0` in the current
    directory. Nothing is to be left there, and below /dev/null nothing can be, unless MS_OM_PATH names a folder.

    Raises:
        ForkError: this process was forked from one that does.
    """
    if _Process.id is None:
        _Process.id = os.getpid()
    check_process()
    os.environ.setdefault("MS_OM_PATH", os.devnull)


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


# Held by the thread that uses MindSpore's runtime.
MINDSPORE = FairLock()
