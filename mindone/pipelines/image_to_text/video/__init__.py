"""Frames of a video as images: the middle one, several evenly spaced ones, or several in one grid image."""

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
