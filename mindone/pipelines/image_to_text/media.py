"""Images and videos as one kind of input: the pictures to show the model, and the numbers that trainers ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mindone.models.share4v.processing.image_loading import IMAGE_SUFFIXES, load_image

from .video import VIDEO_SUFFIXES, FrameSampling, is_video, read_frames

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


@dataclass(frozen=True)
class Media:
    """An image, or some frames of a video.

    Attributes:
        frames: RGB pictures, upright.
        width: in pixels, of the image or of a frame as it is shown.
        height: as `width`.
        num_frames: of the whole video; 1 for an image.
        fps: frames a second of the video; None for an image.
        duration: seconds of the video; None for an image.
    """

    frames: list[PILImage]
    width: int
    height: int
    num_frames: int = 1
    fps: float | None = None
    duration: float | None = None


def read_media(path: str | os.PathLike[str], sampling: FrameSampling | None = None) -> Media:
    """Read an image, or some frames of a video; the suffix says which it is.

    Args:
        path: of a file.
        sampling: which frames of a video; by default the one in the middle.

    Raises:
        ImageLoadError, VideoLoadError: (both a ValueError) the file cannot be read; the message names it.
        VideoReaderMissingError: (an ImportError) it is a video, and PyAV is not installed.

    Example:
        >>> from mindone.pipelines.image_to_text.media import read_media
        >>> media = read_media("clip.mp4")  # doctest: +SKIP
        >>> captioner(media.frames)  # doctest: +SKIP
    """
    if not is_video(path):
        image = load_image(path)
        return Media([image], *image.size)
    video = read_frames(path, sampling)
    return Media(video.frames, video.width, video.height, video.num_frames, video.fps, video.duration)


def find_media(folder: str | os.PathLike[str], on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the images and videos of a folder and its subfolders, in the order of their names.

    Known by their suffixes; what is hidden (a name with a dot in front) is left out, and links to folders are not
    followed. The names of one folder at a time are held.

    Args:
        folder: where to begin.
        on_error: called with the error of a subfolder that cannot be listed, which is then left out; None raises it.

    Raises:
        NotADirectoryError: `folder` is none.
        OSError: a folder cannot be listed.

    Example:
        >>> from mindone.pipelines.image_to_text.media import find_media
        >>> [path.name for path in find_media("videos")]  # doctest: +SKIP
        ['clip.mp4', 'photo.jpg']
    """
    place = Path(folder)
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is no folder: give the one that holds the images and videos")
    return _walk(place, on_error)


def _walk(folder: Path, on_error: Callable[[OSError], None] | None) -> Iterator[Path]:
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return
    for name, is_folder in found:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(folder / name, on_error)
        elif Path(name).suffix.lower() in suffixes:
            yield folder / name
