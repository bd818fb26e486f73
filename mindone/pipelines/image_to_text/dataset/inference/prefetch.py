"""Prefetching: threads read, decode and preprocess inputs while the model works on earlier ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mindone.models.share4v.generation.engine import ImageSet
from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

from ..audit.image_hash import hash_of_frames
from ..readers import read_task
from ..readers.downloads import DEFAULT_DOWNLOADS, DownloadOptions
from ..readers.read_pool import ReadPool
from ..rules.retries import Attempt, Caption
from ..state.records import Record
from ..state.tasks import Task
from .token_rules import forced_ids

if TYPE_CHECKING:
    from mindone.models.share4v import Share4VProcessor

ARRIVAL_SECONDS = 0.1  # after which tasks that have arrived meanwhile are noticed, while all others wait for servers


@dataclass(eq=False)
class PreparedInput:
    """An input between its Task and its Record: its pixels and prompts, and its captions as they are completed.

    Attributes:
        task: the input and its prompts.
        record: what is known of its record; it has an error if the input cannot be captioned. A prompt that waits for
            an earlier text still has its variables.
        images: pixels or features of the picture, or of the frames of a video; None if it cannot be captioned.
        frames: number of images of the prompts.
        input_ids: int64 [1, L], by the index of the prompt; those that wait for an earlier text are not there yet.
        beginnings: for each prompt, ids at its end with which its caption begins.
        attempts: for each prompt, those of which this input is the first that needs the caption.
        captions: one for each prompt; None until it is completed.
        order: number of inputs that were started before this one and including it.
        started: `time.perf_counter()` when the first of its captions was started; None if equal pictures provided them.
    """

    task: Task
    record: Record
    images: ImageSet | None = None
    frames: int = 1
    input_ids: dict[int, np.ndarray] = field(default_factory=dict)
    beginnings: list[Sequence[int]] = field(default_factory=list)
    attempts: list[list[Attempt]] = field(default_factory=list)
    captions: list[Caption | None] = field(default_factory=list)
    order: int = 0
    started: float | None = None


@dataclass(frozen=True)
class PromptEncoder:
    """Makes ids from the prompts of tasks.

    Attributes:
        processor: of the model.
        conversation: name of the template.
        beginnings: name of a text ("" in a job without named texts) -> ids with which its answers begin, if the task
            has no beginning of its own.
        blind: names of the texts for which the model does not see the image.
    """

    processor: Share4VProcessor
    conversation: str
    beginnings: Mapping[str, Sequence[int]] = field(default_factory=dict)
    blind: frozenset[str] = frozenset()

    def beginning(self, task: Task, index: int) -> Sequence[int]:
        """Return the ids with which the answer to a prompt begins.

        Raises:
            ValueError: the task's own beginning cannot be appended to a prompt.
        """
        own = task.beginning_of(index)
        if own is None:
            return self.beginnings.get(task.text_of(index), ())
        return forced_ids(self.processor, own, self.conversation)

    def encode(self, task: Task, index: int, prompt: str, images: int, beginning: Sequence[int]) -> np.ndarray:
        """Return the ids int64 [1, L] of a prompt, variables filled in, about a number of images.

        Raises:
            ValueError: the prompt has a number of `<image>` that is not that of the images.
        """
        shown = 0 if task.text_of(index) in self.blind else images
        text = self.processor.prompt(prompt, shown, self.conversation)
        return np.array([[*self.processor.encode_prompt(text), *beginning]])


def prepare(
    task: Task,
    encoder: PromptEncoder,
    max_image_pixels: int | None = None,
    downloads: DownloadOptions = DEFAULT_DOWNLOADS,
) -> PreparedInput:
    """Read and preprocess one input; a problem with it becomes the `error` of its record.

    Args:
        task: the input and its prompts.
        encoder: makes ids, and pixel values by its processor.
        max_image_pixels: as in `load_image`.
        downloads: how images at URLs are downloaded.
    """
    record, frames = read_task(task, downloads)
    if record.error is not None:
        return PreparedInput(task, record)
    try:
        images = [load_image(frame, max_image_pixels) for frame in frames]
        pixels = [encoder.processor.image_processor(image) for image in images]
        beginnings = [encoder.beginning(task, index) for index in range(len(task.prompts))]
        input_ids = {
            index: encoder.encode(task, index, prompt, len(images), beginning)
            for index, (prompt, beginning) in enumerate(zip(task.prompts, beginnings, strict=True))
            if not task.needs_of(index)
        }
        width, height = images[0].size
        return PreparedInput(
            task,
            replace(record, width=width, height=height, image_hash=hash_of_frames(images)),
            images=ImageSet(np.stack(pixels)),  # [N, 3, S, S]
            frames=len(images),
            input_ids=input_ids,
            beginnings=beginnings,
            attempts=[[] for _ in task.prompts],
            captions=[None] * len(task.prompts),
        )
    except (ImageLoadError, ValueError, MemoryError) as error:
        return PreparedInput(task, replace(record, error=str(error) or type(error).__name__))


class Prefetcher(AbstractContextManager["Prefetcher"]):
    """Prepares tasks in threads, a limited number ahead of the consumer, and returns them in order.

    Tasks whose images are being downloaded are passed over and do not count towards the limit, as far as `ReadPool` has
    threads for them: a slow host does not keep others waiting.

    Args:
        tasks: read no further than `ahead` tasks beyond those that were taken. May end, and go on when `refill` asks
            again: its next tasks have not arrived yet.
        encoder: as in `prepare`.
        workers: number of tasks that are prepared at a time.
        ahead: maximum number of prepared tasks that wait; each holds the pixel values of a picture.
        max_image_pixels, downloads: as in `prepare`.
    """

    def __init__(
        self,
        tasks: Iterator[Task],
        encoder: PromptEncoder,
        workers: int,
        ahead: int,
        max_image_pixels: int | None = None,
        downloads: DownloadOptions = DEFAULT_DOWNLOADS,
    ) -> None:
        self._tasks = tasks
        self._ahead = ahead
        self._arguments = encoder, max_image_pixels, downloads
        self._changed = threading.Event()  # a task was prepared, or waits for a server
        self._pool = ReadPool(workers, "share4v-prefetch", self._changed.set)
        self._futures: deque[Future[PreparedInput]] = deque()
        self.refill()

    def __exit__(self, *exception: object) -> None:
        self._pool.close()

    @property
    def exhausted(self) -> bool:
        """Whether all tasks that have arrived were taken."""
        return not self._futures

    @property
    def ready(self) -> bool:
        """Whether `take` would return without waiting."""
        self.refill()
        return self._next() is not None

    def take(self) -> PreparedInput:
        """Return the next task, waiting until one is prepared."""
        while True:
            self._changed.clear()
            self.refill()
            future = self._next()
            if future is not None:
                self._futures.remove(future)
                self.refill()
                return future.result()
            self._changed.wait(ARRIVAL_SECONDS)

    def refill(self) -> None:
        """Start to prepare further tasks, as many as may wait."""
        while len(self._futures) < self._ahead + self._pool.waiting:
            task = next(self._tasks, None)
            if task is None:
                return
            self._futures.append(self._pool.submit(prepare, task, *self._arguments))

    def _next(self) -> Future[PreparedInput] | None:
        """Return the first task that waits for no server, if it is prepared."""
        first = next((one for one in self._futures if not self._pool.is_waiting(one)), None)
        return first if first is not None and first.done() else None
