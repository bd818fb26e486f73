"""Prefetching: threads read, decode and preprocess inputs while the model works on earlier ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mindone.models.share4v.generation.engine import ImageSet
from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

from ..audit.image_hash import hash_of_frames
from ..readers import ItemError, read_item
from ..readers.downloads import DEFAULT_DOWNLOADS, DownloadOptions
from ..readers.read_pool import ReadPool
from ..rules.retries import Caption
from ..state.tasks import Task
from .token_rules import forced_ids

if TYPE_CHECKING:
    from mindone.models.share4v import Share4VProcessor

ARRIVAL_SECONDS = 0.1  # after which tasks that have arrived meanwhile are noticed, while all others wait for servers


@dataclass(eq=False)
class PreparedInput:
    """An input between its Task and its Record: first what was read, then the captions as they are completed.

    Attributes:
        task: the input and its prompts.
        sha256: of the picture's bytes, hexadecimal; None if they could not be read.
        images: pixels or features of the picture, or of the frames of a video.
        prompts: of the captions; one that waits for an earlier text still has its variables.
        input_ids: for each prompt int64 [1, L]; None while it waits for an earlier text.
        beginnings: for each prompt, ids at its end with which its caption begins.
        frames: number of images of the prompts.
        width, height: of the picture in pixels, as it is shown; None if it could not be decoded.
        image_hash: perceptual hash of the picture; None if it could not be decoded.
        columns: what reading the input found out about it, such as the length of a video.
        error: why it cannot be captioned, or None.
        captions: one for each prompt; None until it is completed.
        order: number of inputs that were started before this one and including it.
        started: `time.perf_counter()` when the first of its captions was started; None if equal pictures provided them.
        download: as of a Record.
    """

    task: Task
    sha256: str | None = None
    images: ImageSet | None = None
    prompts: list[str] = field(default_factory=list)
    input_ids: list[np.ndarray | None] = field(default_factory=list)
    beginnings: list[Sequence[int]] = field(default_factory=list)
    frames: int = 1
    width: int | None = None
    height: int | None = None
    image_hash: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    captions: list[Caption | None] = field(default_factory=list)
    order: int = 0
    started: float | None = None
    download: Mapping[str, int] = field(default_factory=dict)


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
    """Read and preprocess one input; a problem with it becomes its `error`.

    Args:
        task: the input and its prompts.
        encoder: makes ids, and pixel values by its processor.
        max_image_pixels: as in `load_image`.
        downloads: how images at URLs are downloaded.
    """
    try:
        picture = read_item(task.item, downloads)
    except (ItemError, OSError, ValueError) as error:
        return PreparedInput(task, error=str(error) or type(error).__name__, download=getattr(error, "download", {}))
    prepared = PreparedInput(
        task,
        picture.sha256,
        prompts=list(task.prompts),
        columns=dict(picture.columns),
        captions=[None] * len(task.prompts),
        download=picture.download,
    )
    try:
        images = [load_image(frame, max_image_pixels) for frame in picture.frames]
        pixels = [encoder.processor.image_processor(image) for image in images]
        prepared.images = ImageSet(np.stack(pixels))  # [N, 3, S, S]
        prepared.beginnings = [encoder.beginning(task, index) for index in range(len(task.prompts))]
        prepared.input_ids = [
            None if task.needs_of(index) else encoder.encode(task, index, prompt, len(images), beginning)
            for index, (prompt, beginning) in enumerate(zip(task.prompts, prepared.beginnings, strict=True))
        ]
        prepared.frames = len(images)
        prepared.width, prepared.height = images[0].size
        prepared.image_hash = hash_of_frames(images)
    except (ImageLoadError, ValueError, MemoryError) as error:
        prepared.images = None
        prepared.error = str(error) or type(error).__name__
    return prepared


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
