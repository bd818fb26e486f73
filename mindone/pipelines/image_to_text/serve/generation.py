"""One request's answers while the engine generates them: events from the model's thread for the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .chat import Prompt
from .errors import ApiError, no_memory, restarting
from .options import Limits

if TYPE_CHECKING:
    from mindone.models.share4v.generation.continuous_batch import Completion, PrefillProgress
    from mindone.models.share4v.generation.decoding import GenerationSettings
    from mindone.models.share4v.generation.engine import Engine
    from mindone.models.share4v.generation.streaming import GenerationPiece

_log = logging.getLogger(__name__)
FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Event:
    """Something that happened to one of a request's answers.

    Attributes:
        choice: number of the answer.
        value: progress of the prompt, a piece of text, or the result.
    """

    choice: int
    value: PrefillProgress | GenerationPiece | Completion[Any]


class Generation:
    """The answers to a request, in the engine.

    Args:
        engine: of the model.
        prompts: with their settings, one for each answer.
        limits: time in the queue, and of the whole request.
        wants_pieces: report every piece of text, for a stream.
        began: `time.perf_counter()` when the request began.

    Attributes:
        prompts: one for each answer.
        completions: the results so far, by number of the answer.
        submitted: `time.perf_counter()` when the engine got the request.

    Raises:
        ApiError: 503 if the engine is closed.
    """

    def __init__(
        self,
        engine: Engine[object],
        prompts: Sequence[tuple[Prompt, GenerationSettings]],
        limits: Limits,
        wants_pieces: bool,
        began: float,
    ) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._events: deque[Event] = deque()
        self._has_events = asyncio.Event()
        self._is_signalled = False
        self._error: ApiError | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self.prompts = [prompt for prompt, _ in prompts]
        self.completions: dict[int, Completion[Any]] = {}
        self.submitted = time.perf_counter()
        self._ids = [object() for _ in prompts]
        self._submit(prompts, wants_pieces)
        self._timers = [
            self._loop.call_later(limits.queue_seconds, self._check_queue),
            self._loop.call_later(max(limits.request_seconds - (self.submitted - began), 0), self._time_out),
        ]

    @property
    def is_complete(self) -> bool:
        """Whether all answers have ended."""
        return len(self.completions) == len(self._ids)

    async def events(self, timeout: float | None = None) -> list[Event]:
        """Return what has happened since the last call; wait for something to happen.

        Args:
            timeout: in seconds, after which the list is empty; None waits without limit.

        Raises:
            ApiError: an answer failed, or the request took too long; the other answers are cancelled.
        """
        if not self._events and self._error is None:
            try:
                await asyncio.wait_for(self._has_events.wait(), timeout)
            except asyncio.TimeoutError:
                return []
        self._has_events.clear()
        self._is_signalled = False  # before the queue is emptied, so that no event is left in it without a signal
        found = []
        while self._events:
            event = self._events.popleft()
            self._note(event)
            found.append(event)
        if self._error is not None:
            self.cancel()
            raise self._error
        return found

    async def complete(self) -> None:
        """Wait until all answers have ended.

        Raises:
            ApiError: as `events`.
        """
        while not self.is_complete:
            await self.events()

    def cancel(self) -> None:
        """End the answers that have not ended; the engine frees their slots at its next step."""
        for timer in self._timers:
            timer.cancel()
        for number, request_id in enumerate(self._ids):
            if number not in self.completions:
                self._engine.cancel(request_id)

    def _submit(self, prompts: Sequence[tuple[Prompt, GenerationSettings]], wants_pieces: bool) -> None:
        from mindone.models.share4v.generation.engine import ImageSet, Request

        images: dict[int, ImageSet] = {}  # answers to one prompt share its images
        for number, (prompt, settings) in enumerate(prompts):
            report = partial(self._report, number)
            if prompt.pixel_values is not None and id(prompt) not in images:
                images[id(prompt)] = ImageSet(prompt.pixel_values)
            request: Request[object] = Request(
                self._ids[number],
                prompt.input_ids,
                settings,
                images.get(id(prompt)),
                on_piece=report if wants_pieces else None,
                on_prefill=report,
                on_completion=report,
            )
            try:
                self._engine.submit(request)
            except RuntimeError as error:
                self.cancel()
                raise restarting() from error

    # In the model's thread

    def _report(self, choice: int, value: Any) -> None:
        self._events.append(Event(choice, value))
        if not self._is_signalled:
            self._is_signalled = True
            self._loop.call_soon_threadsafe(self._has_events.set)

    # In the event loop's thread

    def _note(self, event: Event) -> None:
        """Store the result of an answer; one that failed sets the error of the request."""
        from mindone.models.share4v.generation.continuous_batch import Completion

        if not isinstance(event.value, Completion):
            return
        completion = event.value
        self.completions[event.choice] = completion
        if completion.error is not None and self._error is None:
            self._error = _error_of(completion.error)
        elif completion.finish_reason == "cancelled" and self._error is None:
            self._error = ApiError(503, "the server is shutting down: send the request again, later", retry_after=5)
        if self.is_complete:
            for timer in self._timers:
                timer.cancel()

    def _check_queue(self) -> None:
        if all(self._engine.is_waiting(one) for one in self._ids):
            seconds = self._limits.queue_seconds
            message = f"the request waited {seconds:g} s for its turn, the limit of this server: try again later"
            self._fail(ApiError(429, message, code="queue_timeout", retry_after=max(1, round(seconds))))

    def _time_out(self) -> None:
        self._fail(request_timeout(self._limits))

    def _fail(self, error: ApiError) -> None:
        self._error = self._error or error
        self._has_events.set()


def request_timeout(limits: Limits) -> ApiError:
    """Return the answer to a request that takes too long."""
    message = f"the request took longer than the limit of {limits.request_seconds:g} s: ask for fewer tokens"
    return ApiError(504, message, code="request_timeout")


def _error_of(error: Exception) -> ApiError:
    """Return the answer to a request whose generation raised `error`.

    What else a client can get wrong is checked before the engine gets a request, so other errors are not the client's.
    """
    from mindone.models.share4v.generation.constraints import GrammarError

    if isinstance(error, FloatingPointError):
        return ApiError(
            500, "the model computed values that are not finite numbers for this request", code="not_finite"
        )
    if isinstance(error, MemoryError):
        _log.error("a request got no memory: %s", error)
        return no_memory()
    if isinstance(error, GrammarError):  # only the answer shows that a schema takes too much work
        return ApiError(400, str(error), code="invalid_schema")
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "an error in the server ended this request; its log says more", code="internal_error")
