"""Errors of reading videos."""

from __future__ import annotations


class VideoLoadError(ValueError):
    """The frames of a video could not be read; the message names the video, the problem and what to do.

    Example:
        >>> from mindone.pipelines.image_to_text.video import VideoLoadError, read_frames
        >>> try:
        ...     read_frames(b"")
        ... except VideoLoadError as error:
        ...     print(error)
        0 bytes: the file is empty; get it again or leave it out
    """


class VideoNotFoundError(VideoLoadError, FileNotFoundError):
    """A VideoLoadError that is also a FileNotFoundError: the path does not exist."""


class VideoReaderMissingError(ImportError):
    """The package that reads videos is not installed; the message says how to install it."""


def damaged(name: str, found: str) -> str:
    """Return the message for a truncated or damaged file; `found` is the symptom."""
    return f"{name}: the video is truncated or damaged ({found}); get the file again or leave it out"
