"""Frames of a video as pictures: one from the middle, several evenly spaced, or several as a grid in one picture."""

from __future__ import annotations

from .errors import VideoLoadError, VideoNotFoundError, VideoReaderMissingError
from .reading import VIDEO_SUFFIXES, Video, VideoSource, is_video, read_frames
from .sampling import FrameSampling

__all__ = [
    "VIDEO_SUFFIXES",
    "FrameSampling",
    "Video",
    "VideoLoadError",
    "VideoNotFoundError",
    "VideoReaderMissingError",
    "VideoSource",
    "is_video",
    "read_frames",
]
