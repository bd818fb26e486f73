"""read_frames: read a few frames of a video file, and the metadata that trainers need."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Union

from mindone.models.share4v.display import looked_in
from mindone.models.share4v.processing.image_loading import describe

from .decoding import decode
from .errors import VideoLoadError, VideoNotFoundError, VideoReaderMissingError, damaged
from .grid import make_grid
from .sampling import FrameSampling
from .scanning import scan

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL.Image import Image as PILImage

VideoSource = Union[str, "os.PathLike[str]", bytes]

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".ogv", ".avi", ".wmv", ".flv")
) | frozenset((".mpg", ".mpeg", ".ts", ".mts", ".m2ts"))
# FFmpeg's names of the formats that are tried. The others include playlists, which open further files and URLs, and a
# format that renders any text file as a video.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
DECODING_THREADS = 4  # each has its own frame buffers
# PyAV's exceptions for damaged files, besides FFmpeg's errors; an unannounced stream, for example, is an IndexError.
DAMAGE = (OSError, ValueError, EOFError, LookupError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Video:
    """Some frames of a video, and its metadata.

    Attributes:
        frames: RGB images as a player shows them: with square pixels, rotated and mirrored as the file specifies; one
            for the modes "middle" and "grid".
        timestamps: start time of each selected frame, in seconds after the first frame of the video; for "grid", one
            for each cell.
        num_frames: number of frames of the whole video.
        width, height: size of a frame in pixels as a player shows it: with square pixels, after rotation.
        fps: average frames per second.
        duration: length of the whole video in seconds.
    """

    frames: list[PILImage]
    timestamps: list[float]
    num_frames: int
    width: int
    height: int
    fps: float
    duration: float


def is_video(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the suffix of a video.

    Example:
        >>> from mindone.pipelines.image_to_text.video import is_video
        >>> is_video("clip.MP4"), is_video("photo.jpg")
        (True, False)
    """
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(source: VideoSource, sampling: FrameSampling | None = None) -> Video:
    """Read a few frames of a video.

    A first pass over the file, without decoding, determines the times of its frames and, if the container states its
    duration, whether the file is complete. Then the selected frames are decoded, each from the keyframe before it (in
    MPEG streams, which have no index, and AVI with B-frames: from the beginning). Memory use is the returned frames, a
    few more, and 8 bytes for each frame of the video. The same file always yields the same frames.

    Args:
        source: path of a video file, or its bytes.
        sampling: which frames to read; by default the one in the middle.

    Raises:
        VideoLoadError: (a ValueError) the file is missing, empty, truncated, damaged or not a video, or has only audio.
        VideoNotFoundError: (also a FileNotFoundError) the path does not exist.
        VideoReaderMissingError: (an ImportError) PyAV is not installed.

    Example:
        >>> from mindone.pipelines.image_to_text.video import FrameSampling, read_frames
        >>> video = read_frames("clip.mp4", FrameSampling("even", 4))  # doctest: +SKIP
        >>> len(video.frames), video.num_frames, video.fps  # doctest: +SKIP
        (4, 250, 25.0)
    """
    reader_error = _reader_error()
    sampling, name = FrameSampling() if sampling is None else sampling, describe(source)
    file = _open_file(source, name)
    with file:
        try:
            with _opened(file, name) as (container, stream):
                timeline = scan(container, stream, name)
            indices = sampling.picks(timeline.timestamps, timeline.end)
            images = decode(lambda: _opened(file, name), timeline, indices, name)
            frames, size = _arrange(images, len(indices), sampling)
        except VideoLoadError:
            raise
        except (reader_error, *DAMAGE) as error:
            raise VideoLoadError(damaged(name, _reason(error))) from error
    return Video(
        frames=frames,
        timestamps=[timeline.seconds(index) for index in indices],
        num_frames=len(timeline.timestamps),
        width=size[0],
        height=size[1],
        fps=float(timeline.rate),
        duration=float(timeline.duration),
    )


def _arrange(images: Iterator[PILImage], count: int, sampling: FrameSampling) -> tuple[list[PILImage], tuple[int, int]]:
    """Return the frames, as a grid in the mode "grid", and the size (width, height) of one frame."""
    if sampling.mode == "grid":
        grid, size = make_grid(images, count)
        return [grid], size
    frames = list(images)
    return frames, frames[0].size


def _reader_error() -> type[Exception]:
    try:
        from av import FFmpegError
    except ImportError as error:
        raise VideoReaderMissingError(
            f"reading videos needs PyAV ({error}): pip install 'mindone-share4v[video]'"
        ) from error
    return FFmpegError


def _open_file(source: VideoSource, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        file: BinaryIO = io.BytesIO(source)
    else:
        if not isinstance(source, (str, os.PathLike)):
            raise VideoLoadError(f"{name} is not a video; give the path or the bytes of a video file")
        path = Path(source)
        try:
            if not path.exists():
                raise VideoNotFoundError(f"{name}: there is no such file{looked_in(str(path))}; check the path")
            if not path.is_file():
                raise VideoLoadError(f"{name} is not a regular file; give the path of a video file")
            file = path.open("rb")
        except VideoLoadError:
            raise
        except (OSError, ValueError) as error:  # no permission, a name that is too long or contains a null byte
            reason = getattr(error, "strerror", None) or error
            raise VideoLoadError(f"{name} cannot be read: {reason}; check the path and its permissions") from error
    if not file.read(1):
        file.close()
        raise VideoLoadError(f"{name}: the file is empty; get it again or leave it out")
    return file


@contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container at its beginning, and select the video stream."""
    import av
    from av.stream import Disposition

    file.seek(0)
    try:
        container = av.open(file, "r", metadata_errors="replace", options={"format_whitelist": FORMATS})
    except (av.FFmpegError, *DAMAGE) as error:
        raise VideoLoadError(
            f"{name}: not a video, or truncated or damaged ({_reason(error)}); give MP4, Matroska, WebM, AVI, MPEG, ..."
        ) from error
    with container:
        # Cover art is stored as a video stream, but is not a video.
        streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        if not streams and container.streams.audio:
            raise VideoLoadError(f"{name}: this file has audio but no video; leave it out")
        if not streams:
            raise VideoLoadError(damaged(name, "it has no video stream"))
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
        if stream.codec_context is None:
            raise VideoLoadError(
                f"{name}: FFmpeg has no decoder for this video, or it is truncated or damaged; re-encode it as H.264"
            )
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = DECODING_THREADS
        yield container, stream


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
