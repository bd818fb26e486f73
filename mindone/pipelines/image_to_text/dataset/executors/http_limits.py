"""How many requests may be in flight at an endpoint, and when: additive increase, multiplicative decrease.

As TCP does with packets (RFC 5681): the number doubles with each round of answers until the endpoint first says that it
has too many; from then on it grows by one a round, and halves whenever the endpoint says so again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

_FIRST = 4  # requests in flight at the start
_LONGEST_BACKOFF = 60.0
_LONGEST_PAUSE = 3600.0  # whatever an endpoint asks for: a job must not wait for ever


class RequestLimit:
    """The limit of one endpoint.

    Args:
        maximum: number of requests in flight that is never exceeded.
        backoff: seconds of the first pause if the endpoint does not say how long to wait; each further one doubles it.
        clock: returns monotonic seconds.
        jitter: returns a number in [0, 1), so that clients which were refused together do not return together.

    Attributes:
        in_flight: number of requests that were started and have not ended.
        paused_until: time before which no request may start.

    Example:
        >>> limit = RequestLimit(8, clock=lambda: 0.0)
        >>> limit.value
        4
    """

    def __init__(
        self,
        maximum: int,
        backoff: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._maximum, self._backoff, self._clock, self._jitter = maximum, backoff, clock, jitter
        self._value = float(min(_FIRST, maximum))
        self._threshold = float("inf")  # up to here each answer adds one; beyond it, each round does
        self._reduced = float("-inf")  # time of the last reduction
        self._reductions = 0  # without an answer in between
        self._full = float("-inf")  # time when as many requests as are allowed were last in flight
        self.in_flight = 0
        self.paused_until = float("-inf")

    @property
    def value(self) -> int:
        """Number of requests that may be in flight."""
        return int(self._value)

    def wait(self) -> float | None:
        """Return the seconds until a request may start, 0 for now; None if one has to end first."""
        if self.in_flight >= self.value:
            return None
        return max(0.0, self.paused_until - self._clock())

    def start(self) -> float:
        """Count a request that starts, and return its time, which `answered` or `refused` gets."""
        self.in_flight += 1
        now = self._clock()
        if self.in_flight >= self.value:
            self._full = now
        return now

    def end(self) -> None:
        """Count a request that has ended, however it did."""
        self.in_flight -= 1

    def answered(self, started: float) -> None:
        """The endpoint answered a request: allow more, if as many as are allowed were in flight with it."""
        self._reductions = 0
        if started < self._reduced or started > self._full:
            return  # it says nothing about the present limit
        step = 1.0 if self._value < self._threshold else 1.0 / self._value
        self._value = min(float(self._maximum), self._value + step)

    def refused(self, started: float, seconds: float | None) -> None:
        """The endpoint has too many requests: halve the limit and pause.

        Requests that started together and are refused together count once.

        Args:
            started: when the request started.
            seconds: how long the endpoint asks to wait; None if it does not say.
        """
        if started >= self._reduced:
            self._reductions += 1
            self._value = max(1.0, self._value / 2)
            self._threshold = self._value
            self._reduced = self._clock()
            if seconds is None:
                seconds = min(_LONGEST_BACKOFF, self._backoff * 2 ** (self._reductions - 1))
                seconds *= 0.5 + self._jitter() / 2
        self.paused_until = max(self.paused_until, self._clock() + min(seconds or 0.0, _LONGEST_PAUSE))
