"""ReadPool: threads that read inputs, of which those that wait for a server do not keep the others from working."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ParamSpec, TypeVar

MAX_WAITING = 64  # threads of a pool that wait for servers at a time

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


class ReadPool(AbstractContextManager["ReadPool"]):
    """Runs functions in threads, at most a number of them at a time, in the order in which they were submitted.

    A function that waits for a server (`waiting_for_server`) does not count meanwhile: the next one starts, in a
    further thread if necessary. So a slow host delays its own images and no others, until MAX_WAITING of its images
    wait.

    Args:
        workers: functions that run at a time.
        name: start of the threads' names.
        on_change: called, in any thread, when a function has ended or begins to wait.
    """

    def __init__(self, workers: int, name: str, on_change: Callable[[], None] = lambda: None) -> None:
        self._workers, self._name, self._on_change = workers, name, on_change
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._threads = self._running = 0
        self._waiting: set[Future[Any]] = set()
        self._is_closed = False

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Number of functions that wait for a server."""
        return len(self._waiting)

    def is_waiting(self, future: Future[Any]) -> bool:
        """Return whether a function waits for a server."""
        return future in self._waiting

    def submit(
        self, function: Callable[Parameters, Result], *arguments: Parameters.args, **keywords: Parameters.kwargs
    ) -> Future[Result]:
        """Run a function as soon as a thread is free, and return its future."""
        future: Future[Result] = Future()
        with self._changed:
            self._tasks.append((future, lambda: function(*arguments, **keywords)))
            self._start_threads()
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Cancel what has not started, and end the threads once they are done; they are not waited for."""
        with self._changed:
            self._is_closed = True
            for future, _ in self._tasks:
                future.cancel()
            self._tasks.clear()
            self._changed.notify_all()

    def _start_threads(self) -> None:
        """Start a thread for each task that could run, and has none; called with the lock."""
        idle = self._threads - self._running - len(self._waiting)
        for _ in range(min(len(self._tasks) - idle, self._workers - self._running - idle)):
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        _OWN.pool = self
        while True:
            with self._changed:
                while not self._is_closed and not (self._tasks and self._running < self._workers):
                    self._changed.wait()
                if self._is_closed:
                    return
                future, function = self._tasks.popleft()
                self._running += 1
            _OWN.future = future
            try:
                if future.set_running_or_notify_cancel():
                    _settle(future, function)
            finally:
                del future, function, _OWN.future  # an idle thread keeps no image
                self._leave()
                self._on_change()

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    @contextmanager
    def _without_slot(self, future: Future[Any]) -> Iterator[None]:
        with self._changed:
            counts = len(self._waiting) < MAX_WAITING
            if counts:
                self._waiting.add(future)
                self._running -= 1
                self._start_threads()
                self._changed.notify_all()
        if counts:
            self._on_change()
        try:
            yield
        finally:
            if counts:
                with self._changed:
                    self._waiting.discard(future)
                    while self._running >= self._workers:
                        self._changed.wait()
                    self._running += 1


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


_OWN = threading.local()  # the pool whose thread this is, and the future of what it runs


@contextmanager
def waiting_for_server() -> Iterator[None]:
    """In a thread of a ReadPool, let another function run meanwhile; elsewhere do nothing."""
    pool: ReadPool | None = getattr(_OWN, "pool", None)
    if pool is None:
        yield
        return
    with pool._without_slot(_OWN.future):
        yield
