"""Pictures made ready ahead of the model: read, decoded, scaled and put beside their prompts by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

from ..readers import ItemError, read_item
from ..state.tasks import Task

if TYPE_CHECKING:
    from mindone.models.share4v import Share4VProcessor


@dataclass(frozen=True)
class Prepared:
    """A task that the model can begin with, or the reason why it cannot.

    Attributes:
        sha256: of the picture's bytes; None where they could not be read.
        pixel_values: float32 [N, 3, S, S], the frames of a video or one picture.
        input_ids: for each prompt int64 [1, L].
        width, height: of the picture as it is shown; None where it could not be decoded.
        columns: what reading the input taught about it, such as the length of a video.
        error: why it cannot be captioned.
    """

    task: Task
    sha256: str | None = None
    pixel_values: np.ndarray | None = None
    input_ids: tuple[np.ndarray, ...] = ()
    width: int | None = None
    height: int | None = None
    columns: dict[str, Any] | None = None
    error: str | None = None


def prepare(task: Task, processor: Share4VProcessor, conversation: str, beginning: Sequence[int] = ()) -> Prepared:
    """Read and preprocess one input; whatever is wrong with it becomes its `error`.

    Args:
        task: the input and its prompts.
        processor: makes pixel_values and ids.
        conversation: name of the template.
        beginning: ids with which every answer begins.
    """
    try:
        picture = read_item(task.item)
    except (ItemError, OSError, ValueError) as error:
        return Prepared(task, error=str(error) or type(error).__name__)
    try:
        images = [load_image(frame) for frame in picture.frames]
        pixels = np.stack([processor.image_processor(image) for image in images])
        prompts = [processor.prompt(prompt, len(images), conversation) for prompt in task.prompts]
        ids = tuple([np.array([[*processor.encode_prompt(prompt), *beginning]]) for prompt in prompts])
    except (ImageLoadError, ValueError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        return Prepared(task, picture.sha256, columns=dict(picture.columns), error=reason)
    width, height = images[0].size
    return Prepared(task, picture.sha256, pixels, ids, width, height, dict(picture.columns))


class Preparation(AbstractContextManager["Preparation"]):
    """Prepares tasks in threads, a few ahead of who takes them, and hands them out in order.

    Args:
        tasks: read no further than `ahead` before what was taken.
        processor, conversation, beginning: as in `prepare`.
        workers: threads.
        ahead: how many tasks are prepared at most that nobody has taken; each holds a picture's pixel_values.
    """

    def __init__(
        self,
        tasks: Iterator[Task],
        processor: Share4VProcessor,
        conversation: str,
        beginning: Sequence[int],
        workers: int,
        ahead: int,
    ) -> None:
        self._tasks, self._ahead = tasks, ahead
        self._arguments = processor, conversation, beginning
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="share4v-prepare")
        self._futures: deque[Future[Prepared]] = deque()
        self._refill()

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def exhausted(self) -> bool:
        """Whether everything was handed out."""
        return not self._futures

    @property
    def ready(self) -> bool:
        """Whether `take` would return at once."""
        return bool(self._futures) and self._futures[0].done()

    def take(self) -> Prepared:
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
