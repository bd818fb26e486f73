"""Admission: how many requests the server works on, and when it refuses more."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ApiError

_WEIGHT = 0.2  # of the newest request in the average duration


class Admission:
    """Counts the sequences that are queued or running; used by the event loop's thread only.

    A request reserves capacity before its body is read, so that the number of bodies in memory is bounded, too.

    Args:
        max_batch: sequences that run together.
        queue: how many more may wait.
        queue_seconds: requests that would probably wait longer are refused at once.

    Attributes:
        active: sequences that are queued or running.
        is_draining: whether the server is about to end and accepts nothing new.
    """

    def __init__(self, max_batch: int, queue: int, queue_seconds: float) -> None:
        self._max_batch, self._queue, self._queue_seconds = max_batch, queue, queue_seconds
        self._mean_seconds: float | None = None
        self._idle = asyncio.Event()
        self.active = 0
        self.is_draining = False

    @property
    def waiting(self) -> int:
        """Sequences beyond those that can run."""
        return max(self.active - self._max_batch, 0)

    @property
    def expected_wait(self) -> float:
        """Seconds that a new request will probably wait for a slot."""
        return (self.waiting / self._max_batch) * (self._mean_seconds or 0.0)

    @contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Reserve capacity for one answer to a request; it is released at the end of the `with` block.

        Raises:
            ApiError: 503 while the server is ending, 429 if the queue is full or too slow.
        """
        reservation = Reservation(self)
        reservation.extend(1)
        try:
            yield reservation
        finally:
            reservation.release()

    async def wait_idle(self) -> None:
        """Wait until no request is left."""
        while self.active:
            self._idle.clear()
            await self._idle.wait()

    def released(self, count: int) -> None:
        """Count `count` answers as ended."""
        self.active -= count
        if not self.active:
            self._idle.set()

    def finished(self, seconds: float) -> None:
        """Count how long a sequence took, without its time in the queue."""
        mean = self._mean_seconds
        self._mean_seconds = seconds if mean is None else (1 - _WEIGHT) * mean + _WEIGHT * seconds

    def check(self, count: int) -> None:
        """Check whether `count` more sequences are accepted.

        Raises:
            ApiError: 503 while the server is ending, 429 if the queue is full or too slow.
        """
        if self.is_draining:
            raise ApiError(503, "the server is shutting down: send the request to another one, or later", retry_after=5)
        limit = self._max_batch + self._queue
        if self.active + count > limit:
            if count > limit:
                raise ApiError(400, f"the request asks for {count} answers, but the server has capacity for {limit}")
            raise self._busy(f"the queue is full ({self.active} of {limit} answers are queued or running)")
        if self.expected_wait > self._queue_seconds:
            raise self._busy(f"a request would wait about {self.expected_wait:.0f} s for its turn")

    def _busy(self, reason: str) -> ApiError:
        seconds = max(1, math.ceil(min(self.expected_wait, 60.0)))
        return ApiError(429, f"{reason}: try again in {seconds} s", code="queue_full", retry_after=seconds)


class Reservation:
    """The capacity that one request has reserved, in answers."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._count = 0

    def extend(self, count: int) -> None:
        """Reserve capacity for `count` answers altogether.

        Raises:
            ApiError: as `Admission.check`.
        """
        more = count - self._count
        if more > 0:
            self._admission.check(more)
            self._admission.active += more
            self._count = count

    def release(self) -> None:
        """Release the capacity."""
        self._admission.released(self._count)
        self._count = 0
