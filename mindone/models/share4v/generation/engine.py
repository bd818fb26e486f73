"""Generation engine: a queue of requests in front of a continuous batch.

Threads: one thread owns the engine and calls `step` (or `run`, which calls it in a loop). Other threads may use the
model in other ways meanwhile, and take turns with the engine's steps. `submit`, `stream`, `cancel`, `wait`, `close` and
the counters may be called from any thread. The callbacks of a request are called in the thread that owns the engine, so
they must return quickly and must not block, for example by passing the value on to a queue or an event loop.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Condition
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
from mindspore import Tensor

from ..kernels.component import IMAGE_BATCH_SIZES
from ..nn.host_ops import split_rows
from .continuous_batch import Completion, PrefillProgress, RequestId, check_single
from .decoding import GenerationSettings
from .streaming import GenerationPiece

if TYPE_CHECKING:
    from .mixin import Array, GenerationMixin

IMAGES_PER_RUN = IMAGE_BATCH_SIZES[0]  # images that the vision tower encodes in one run, if that many are waiting
_log = logging.getLogger(__name__)


class ImageSet:
    """The images of a request, encoded once; requests that share this object share the features.

    Attributes:
        pixel_values: float32 [N, 3, S, S]; None once they are encoded, to free memory.
        features: [N, P, H]; None until they are encoded.

    Example:
        >>> images = ImageSet(processor(images=["a.jpg"])["pixel_values"])  # doctest: +SKIP
        >>> for question in questions:  # doctest: +SKIP
        ...     engine.submit(Request(question, ids_of(question), images=images))
    """

    def __init__(self, pixel_values: np.ndarray) -> None:
        self.pixel_values: np.ndarray | None = pixel_values
        self.features: Tensor | None = None

    def __len__(self) -> int:
        """Number of images that are still to be encoded."""
        return 0 if self.pixel_values is None else len(self.pixel_values)

    def store(self, features: Tensor) -> None:
        """Replace the pixels by their features [N, P, H]."""
        self.features = features
        self.pixel_values = None


def _nothing_forbidden(token_ids: Sequence[int]) -> Collection[int]:
    return ()


@dataclass(frozen=True, eq=False)
class Request(Generic[RequestId]):
    """What to generate.

    Attributes:
        request_id: names the request in its `Completion`; hashable, and unique among the requests in the engine.
        input_ids: int [1, L], the prompt, with an image token for each image.
        settings: length, sampling, stop strings and logprobs; no beam search, and one answer (see
            `GenerationSettings.for_sequence`).
        images: the images of the prompt.
        forbidden: called with the new ids so far; returns the ids that must not come next.
        beginning: ids at the end of the prompt that are part of the answer's text.
        on_piece: called with each new piece of the answer.
        on_completion: called once, when the request is complete, has failed or is cancelled.
        on_prefill: called when the request gets a slot, and each time that a part of its prompt has been processed.
    """

    request_id: RequestId
    input_ids: Array
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    images: ImageSet | None = None
    forbidden: Callable[[Sequence[int]], Collection[int]] = _nothing_forbidden
    beginning: Sequence[int] = ()
    on_piece: Callable[[GenerationPiece], None] | None = None
    on_completion: Callable[[Completion[RequestId]], None] | None = None
    on_prefill: Callable[[PrefillProgress], None] | None = None


class Engine(Generic[RequestId]):
    """Generates answers for requests that arrive at any time.

    Each step admits waiting requests to free slots, in the order in which they were submitted, and advances every
    sequence of the batch by a chunk of its prompt or by one token. Images of waiting requests are encoded together,
    `IMAGES_PER_RUN` at a time. The answer to a request does not depend on the order of the requests or on the others in
    the batch: it is the one `model.generate` gives. A failing request does not affect the others; its `Completion` has
    the error. A step that gets no memory ends the request that got its slot last, and the others go on.

    Args:
        model: the model; must have a tokenizer.
        batch_size: maximum number of sequences that are decoded together.

    Attributes:
        completed: number of requests that ended without an error.

    Raises:
        ValueError: batch_size is less than 1.

    Example:
        >>> from mindone.models.share4v import Share4V, Share4VProcessor
        >>> from mindone.models.share4v.generation.decoding import GenerationSettings
        >>> from mindone.models.share4v.generation.engine import Engine, Request
        >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
        >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
        >>> engine = Engine(model, batch_size=4)
        >>> for question in ("What is this?", "Why?"):
        ...     ids = processor(text=question)["input_ids"]
        ...     engine.submit(Request(question, ids, GenerationSettings(max_new_tokens=4, min_new_tokens=4)))
        >>> while len(engine):
        ...     for completion in engine.step():
        ...         print(completion.request_id, len(completion.token_ids))
        What is this? 4
        Why? 4
    """

    def __init__(self, model: GenerationMixin, batch_size: int) -> None:
        self._model = model
        self._batch = model.continuous_batch(batch_size)
        # Guards the fields below; never held while the model runs or a callback is called.
        self._condition = Condition()
        self._requests: dict[RequestId, Request[RequestId]] = {}  # waiting and running
        self._waiting: deque[Request[RequestId]] = deque()
        self._cancelled: list[RequestId] = []
        self._is_closed = False
        self.completed = 0

    # For any thread

    def __len__(self) -> int:
        """Number of requests in the engine, waiting or running."""
        return len(self._requests)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """Number of free slots in the batch; waiting requests fill them at the next step."""
        return self._batch.free

    @property
    def prefix_tokens(self) -> tuple[int, int]:
        """Tokens of all prompts so far, and how many of them the KV cache already held."""
        return self._batch.prefixes.queried, self._batch.prefixes.hits

    def is_waiting(self, request_id: RequestId) -> bool:
        """Return whether a request has not got a slot yet."""
        with self._condition:
            return any(one.request_id == request_id for one in self._waiting)

    @property
    def waiting_images(self) -> int:
        """Number of images of waiting requests that are not encoded yet."""
        return sum(map(len, self._unencoded()))

    def submit(self, request: Request[RequestId], first: bool = False) -> None:
        """Add a request; the following steps process it.

        Args:
            request: the request.
            first: whether it goes before all waiting requests; so the next free row, which may be that of a request
                with the same prefix, is used for it.

        Raises:
            ValueError: the engine already has a request of this name, or the settings ask for beam search or several
                answers.
            RuntimeError: the engine is closed.
        """
        check_single(request.settings)
        with self._condition:
            if self._is_closed:
                raise RuntimeError("the engine is closed and accepts no more requests: make another one")
            if request.request_id in self._requests:
                raise ValueError(f"request {request.request_id!r} is already in the engine: choose another name")
            self._requests[request.request_id] = request
            if first:
                self._waiting.appendleft(request)
            else:
                self._waiting.append(request)
            self._condition.notify_all()

    def stream(self, request: Request[RequestId]) -> PieceStream[RequestId]:
        """Submit a request and return an iterator over its pieces, for a thread that does not own the engine.

        Raises:
            ValueError, RuntimeError: as `submit`.
        """
        events: SimpleQueue[Any] = SimpleQueue()
        self.submit(replace(request, on_piece=events.put, on_completion=events.put))
        return PieceStream(self, request.request_id, events)

    def cancel(self, request_id: RequestId) -> bool:
        """End a request at the next step, which frees its slot; return False if the engine has no such request."""
        with self._condition:
            if request_id not in self._requests:
                return False
            self._cancelled.append(request_id)
            self._condition.notify_all()
            return True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until `step` has work to do or the engine is closed; return whether there is work.

        Args:
            timeout: in seconds; None waits without limit.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._requests or self._is_closed, timeout)
            return bool(self._requests)

    def close(self, cancel: bool = False) -> None:
        """Accept no more requests; `run` returns once the remaining ones are complete.

        Args:
            cancel: cancel the remaining requests.
        """
        with self._condition:
            self._is_closed = True
            if cancel:
                self._cancelled += self._requests
            self._condition.notify_all()

    # For the thread that owns the engine

    def run(self) -> None:
        """Process requests until the engine is closed; without requests, wait for them.

        An exception that concerns the whole batch closes the engine, fails all its requests and is raised.
        """
        try:
            while self.wait():
                self.step()
        except Exception as error:
            self.close()
            self._deliver([self._failure(request_id, error) for request_id in list(self._requests)])
            raise

    def step(self) -> list[Completion[RequestId]]:
        """Admit waiting requests and advance the batch by one step; return the requests that have ended.

        Returns at once if there is nothing to do.

        Raises:
            Exception: whatever the language model's forward pass raises; the engine cannot be used any more.
        """
        completions = [*self._end_cancelled(), *self._admit()]
        if len(self._batch):
            completions += self._batch.step()
        return self._deliver(completions)

    def _end_cancelled(self) -> list[Completion[RequestId]]:
        with self._condition:
            cancelled = dict.fromkeys(one for one in self._cancelled if one in self._requests)
            self._cancelled.clear()
            if cancelled:
                self._waiting = deque(one for one in self._waiting if one.request_id not in cancelled)
        return [self._batch.leave(one) or Completion(one, finish_reason="cancelled") for one in cancelled]

    def _admit(self) -> list[Completion[RequestId]]:
        """Move waiting requests to free slots; return those that failed."""
        failed = []
        while self._batch.free:
            with self._condition:
                if not self._waiting:
                    break
                request = self._waiting.popleft()
            try:
                self._join(request)
            except Exception as error:  # concerns this request only: its images, its prompt, its settings
                failed.append(self._failure(request.request_id, error))
        return failed

    def _join(self, request: Request[RequestId]) -> None:
        images = request.images
        if images is not None and images.features is None:
            self._encode(images)
        features = None if images is None else images.features
        self._batch.join(
            request.request_id,
            self._model.prepare_inputs(request.input_ids, image_features=features),
            request.settings,
            request.forbidden,
            request.beginning,
            request.on_piece,
            request.on_prefill,
        )

    def _encode(self, images: ImageSet) -> None:
        """Encode images, together with those of the requests that wait next.

        Raises:
            ValueError: the model does not accept these pixel values.
        """
        group, count = [images], len(images)
        for other in self._unencoded():
            if other is not images and count < IMAGES_PER_RUN:
                group.append(other)
                count += len(other)
        try:
            features = self._encode_pixels(group)
        except (ValueError, MemoryError):  # one of the others may be the cause, or all together need too much memory
            group = [images]
            features = self._encode_pixels(group)
        parts = split_rows(features, [len(one) for one in group])
        for one, part in zip(group, parts, strict=True):
            one.store(part)

    def _encode_pixels(self, group: Sequence[ImageSet]) -> Tensor:
        """Return features [N, P, H] of all images of the group, in order."""
        pixels = [one.pixel_values for one in group if one.pixel_values is not None]
        return self._model.encode_images(pixels[0] if len(pixels) == 1 else np.concatenate(pixels))

    def _unencoded(self) -> list[ImageSet]:
        """Return the images of waiting requests that are not encoded yet, in the order in which they will be needed."""
        with self._condition:
            found = {id(one.images): one.images for one in self._waiting if one.images is not None and len(one.images)}
        return list(found.values())

    def _failure(self, request_id: RequestId, error: Exception) -> Completion[RequestId]:
        return Completion(request_id, finish_reason="error", error=error)

    def _deliver(self, completions: list[Completion[RequestId]]) -> list[Completion[RequestId]]:
        with self._condition:
            requests = [self._requests.pop(one.request_id) for one in completions]
            # An id may be used again, so a cancellation that came too late must not remain.
            self._cancelled = [one for one in self._cancelled if one in self._requests]
            self.completed += sum(one.finish_reason not in ("error", "cancelled") for one in completions)
        for request, completion in zip(requests, completions, strict=True):
            if request.on_completion is not None:
                try:
                    request.on_completion(completion)
                except Exception:  # must not end the others; the result itself cannot change any more
                    _log.exception("on_completion of request %r raised", request.request_id)
        return completions


class PieceStream(Iterator[GenerationPiece], Generic[RequestId]):
    """The pieces of one request, for a thread that waits for them; ends when the request does.

    Attributes:
        completion: the result, once the iterator has ended; None before.

    Raises:
        Exception: the next piece raises the error of a request that failed.
    """

    def __init__(self, engine: Engine[RequestId], request_id: RequestId, events: SimpleQueue[Any]) -> None:
        self.completion: Completion[RequestId] | None = None
        self._engine = engine
        self._request_id = request_id
        self._events = events

    def __next__(self) -> GenerationPiece:
        if self.completion is not None:
            raise StopIteration
        event = self._events.get()
        if isinstance(event, GenerationPiece):
            return event
        self.completion = event
        if event.error is not None:
            raise event.error
        raise StopIteration

    def close(self) -> None:
        """Cancel the request if it has not ended; pieces that were generated before can still be read."""
        if self.completion is None:
            self._engine.cancel(self._request_id)
