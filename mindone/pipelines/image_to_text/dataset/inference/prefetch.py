"""Prefetching: threads read, decode and preprocess inputs while the model works on earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mindone.models.share4v.generation.engine import ImageSet
from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

from ..audit.image_hash import hash_of_frames
from ..readers import ItemError, read_item
from ..readers.downloads import DEFAULT_DOWNLOADS, DownloadOptions
from ..rules.retries import Caption
from ..state.tasks import Task
from .token_rules import forced_ids

if TYPE_CHECKING:
    from mindone.models.share4v import Share4VProcessor


@dataclass(eq=False)
class PreparedInput:
    """An input between its Task and its Record: first what was read, then the captions as they are completed.

    Attributes:
        task: the input and its prompts.
        sha256: of the picture's bytes, hexadecimal; None if they could not be read.
        images: pixels or features of the picture, or of the frames of a video.
        input_ids: for each prompt int64 [1, L].
        beginning: ids at the end of each prompt with which its caption begins.
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
    input_ids: tuple[np.ndarray, ...] = ()
    beginning: Sequence[int] = ()
    width: int | None = None
    height: int | None = None
    image_hash: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    captions: list[Caption | None] = field(default_factory=list)
    order: int = 0
    started: float | None = None
    download: Mapping[str, int] = field(default_factory=dict)


def prepare(
    task: Task,
    processor: Share4VProcessor,
    conversation: str,
    beginning: Sequence[int] = (),
    max_image_pixels: int | None = None,
    downloads: DownloadOptions = DEFAULT_DOWNLOADS,
) -> PreparedInput:
    """Read and preprocess one input; a problem with it becomes its `error`.

    Args:
        task: the input and its prompts.
        processor: makes pixel values and ids.
        conversation: name of the template.
        beginning: ids with which the answers begin if the task has no beginning of its own.
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
        columns=dict(picture.columns),
        captions=[None] * len(task.prompts),
        download=picture.download,
    )
    try:
        images = [load_image(frame, max_image_pixels) for frame in picture.frames]
        prepared.images = ImageSet(np.stack([processor.image_processor(image) for image in images]))  # [N, 3, S, S]
        prompts = [processor.prompt(prompt, len(images), conversation) for prompt in task.prompts]
        own = beginning if task.beginning is None else forced_ids(processor, task.beginning, conversation)
        prepared.beginning = own
        prepared.input_ids = tuple([np.array([[*processor.encode_prompt(prompt), *own]]) for prompt in prompts])
        prepared.width, prepared.height = images[0].size
        prepared.image_hash = hash_of_frames(images)
    except (ImageLoadError, ValueError, MemoryError) as error:
        prepared.images = None
        prepared.error = str(error) or type(error).__name__
    return prepared


class Prefetcher(AbstractContextManager["Prefetcher"]):
    """Prepares tasks in threads, a limited number ahead of the consumer, and returns them in order.

    Args:
        tasks: read no further than `ahead` tasks beyond those that were taken.
        processor, conversation, beginning: as in `prepare`.
        workers: number of threads.
        ahead: maximum number of prepared tasks that wait; each holds the pixel values of a picture.
        max_image_pixels, downloads: as in `prepare`.
    """

    def __init__(
        self,
        tasks: Iterator[Task],
        processor: Share4VProcessor,
        conversation: str,
        beginning: Sequence[int],
        workers: int,
        ahead: int,
        max_image_pixels: int | None = None,
        downloads: DownloadOptions = DEFAULT_DOWNLOADS,
    ) -> None:
        self._tasks = tasks
        self._ahead = ahead
        self._arguments = processor, conversation, beginning, max_image_pixels, downloads
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="share4v-prefetch")
        self._futures: deque[Future[PreparedInput]] = deque()
        self._refill()

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def exhausted(self) -> bool:
        """Whether all tasks were taken."""
        return not self._futures

    @property
    def ready(self) -> bool:
        """Whether `take` would return without waiting."""
        return bool(self._futures) and self._futures[0].done()

    def take(self) -> PreparedInput:
        """Return the next task, waiting until it is prepared."""
        prepared = self._futures.popleft().result()
        self._refill()
        return prepared

    def _refill(self) -> None:
        while len(self._futures) < self._ahead:
            task = next(self._tasks, None)
            if task is None:
                return
            self._futures.append(self._pool.submit(prepare, task, *self._arguments))
