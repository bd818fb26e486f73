"""Images and videos as one kind of input: frames for the model, and the metadata that trainers need."""

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
        frames: upright RGB images.
        width, height: size of the image or of a video frame in pixels, as it is shown.
        num_frames: number of frames of the whole video; 1 for an image.
        fps: frames per second of the video; None for an image.
        duration: length of the video in seconds; None for an image.
    """

    frames: list[PILImage]
    width: int
    height: int
    num_frames: int = 1
    fps: float | None = None
    duration: float | None = None


def read_media(path: str | os.PathLike[str], sampling: FrameSampling | None = None) -> Media:
    """Read an image, or some frames of a video; the suffix of the file determines which.

    Args:
        path: path of the file.
        sampling: which frames of a video to read; by default the one in the middle.

    Raises:
        ImageLoadError, VideoLoadError: (both a ValueError) the file cannot be read; the message names it.
        VideoReaderMissingError: (an ImportError) the file is a video, and PyAV is not installed.

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
    """Yield the images and videos of a folder and its subfolders, sorted by name within each folder.

    Files are recognized by their suffixes. Hidden names (with a leading dot) are skipped, and symbolic links to folders
    are not followed. Only the names of one folder at a time are in memory.

    Args:
        folder: the folder to search.
        on_error: called with the error of a subfolder that cannot be listed, which is then skipped; by default the
            error is raised.

    Raises:
        NotADirectoryError: `folder` is not a folder.
        OSError: a folder cannot be listed.

    Example:
        >>> from mindone.pipelines.image_to_text.media import find_media
        >>> [path.name for path in find_media("videos")]  # doctest: +SKIP
        ['clip.mp4', 'photo.jpg']
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder: give the folder that contains the images and videos")
    return _walk(root, on_error)


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
