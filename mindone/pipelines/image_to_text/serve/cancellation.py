"""Cancellation of what runs in a thread for a request, when the request ends before it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


class RequestEndedError(Exception):
    """The request ended for which a thread works; nobody waits for its result."""


class Cancellation:
    """Ends what a function waits for in another thread, such as a download."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: Callable[[], object] | None = None
        self._is_cancelled = False

    def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Return what a function returns, of which `cancellable` parts end when `cancel` is called."""
        _OWN.cancellation = self
        try:
            return function(*arguments)
        finally:
            del _OWN.cancellation

    def cancel(self) -> None:
        """End the part that runs, and let no other one begin; no effect when the function has returned."""
        with self._lock:
            self._is_cancelled = True
            if self._end is not None:
                self._end()

    @contextmanager
    def _ending(self, end: Callable[[], object]) -> Iterator[None]:
        with self._lock:
            if self._is_cancelled:
                raise RequestEndedError
            self._end = end
        try:
            yield
        finally:
            with self._lock:  # not while `end` is called: what it ends may be something else afterwards
                self._end = None


_OWN = threading.local()  # the cancellation of the function that this thread runs


@contextmanager
def cancellable(end: Callable[[], object]) -> Iterator[None]:
    """Inside the `with` block, a cancellation of what this thread runs calls `end`, from another thread.

    Raises:
        RequestEndedError: it was cancelled before.
    """
    cancellation: Cancellation | None = getattr(_OWN, "cancellation", None)
    if cancellation is None:
        yield
        return
    with cancellation._ending(end):
        yield
