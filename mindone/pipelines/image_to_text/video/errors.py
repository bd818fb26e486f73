"""What can be wrong with a video."""

from __future__ import annotations


class VideoLoadError(ValueError):
    """A video's frames could not be had; the message names the video, what was wrong and what to do.

    Example:
        >>> from mindone.pipelines.image_to_text.video import VideoLoadError, read_frames
        >>> try:
        ...     read_frames(b"")
        ... except VideoLoadError as error:
        ...     print(error)
        0 bytes: the file is empty; get it again or leave it out
    """


class VideoNotFoundError(VideoLoadError, FileNotFoundError):
    """A VideoLoadError that also is a FileNotFoundError: there is no file at the path."""


class VideoReaderMissingError(ImportError):
    """The package that reads videos is not installed; the message says how to install it."""


def damaged(name: str, found: str) -> str:
    """Say that a file is not whole, and how it showed."""
    return f"{name}: the video is truncated or damaged ({found}); get the file again or leave it out"
