"""read_frames: from a video file to a few pictures and the numbers that trainers ask for."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Union

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
# FFmpeg's names of the formats that are tried. Among the others are play lists, which open further files and
# addresses, and one that makes a video of any text file.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
DECODING_THREADS = 4  # each holds frames of its own
# Besides FFmpeg's errors, what PyAV raises over damaged files: a stream that nobody announced is an IndexError.
DAMAGE = (OSError, ValueError, EOFError, LookupError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Video:
    """Some frames of a video, and what it is like.

    Attributes:
        frames: RGB pictures, upright; one for the modes "middle" and "grid".
        timestamps: when each frame that was taken appears, in seconds after the first; for "grid" one a cell.
        num_frames: how many frames the whole video has.
        width: of a frame as it is shown, in pixels, after any rotation that the file asks for.
        height: as `width`.
        fps: frames a second, on average.
        duration: of the whole video, in seconds.
    """

    frames: list[PILImage]
    timestamps: list[float]
    num_frames: int
    width: int
    height: int
    fps: float
    duration: float


def is_video(path: str | os.PathLike[str]) -> bool:
    """Tell by a file's suffix whether it is one for `read_frames`.

    Example:
        >>> from mindone.pipelines.image_to_text.video import is_video
        >>> is_video("clip.MP4"), is_video("photo.jpg")
        (True, False)
    """
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(source: VideoSource, sampling: FrameSampling | None = None) -> Video:
    """Read a few frames of a video.

    The file is read once without decoding, which shows when its frames appear and, where the container states its
    length, whether it is whole. Then the frames asked for are decoded, each from the keyframe before it (MPEG streams,
    which have no index, and AVI with B-frames: from the beginning). Memory holds the frames that are returned, a few
    more, and 8 bytes for each frame of the video. The same file always gives the same frames.

    Args:
        source: path of a video file, or its bytes.
        sampling: which frames; by default the one in the middle.

    Raises:
        VideoLoadError: (a ValueError) the file is missing, empty, truncated, damaged or no video, or has sound alone.
        VideoNotFoundError: the same, also a FileNotFoundError, for a path where there is nothing.
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
            places = sampling.picks(timeline.timestamps, timeline.end)
            pictures = decode(lambda: _opened(file, name), timeline, places, name)
            frames, size = _arranged(pictures, len(places), sampling)
        except VideoLoadError:
            raise
        except (reader_error, *DAMAGE) as error:
            raise VideoLoadError(damaged(name, _reason(error))) from error
    return Video(
        frames=frames,
        timestamps=[timeline.seconds(place) for place in places],
        num_frames=len(timeline.timestamps),
        width=size[0],
        height=size[1],
        fps=float(timeline.rate),
        duration=float(timeline.duration),
    )


def _arranged(
    pictures: Iterator[PILImage], count: int, sampling: FrameSampling
) -> tuple[list[PILImage], tuple[int, int]]:
    """Return the pictures of a mode, and the size of a frame."""
    if sampling.mode == "grid":
        grid, size = make_grid(pictures, count)
        return [grid], size
    frames = list(pictures)
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
            raise VideoLoadError(f"{name} is no video; give a path, or a video file's bytes")
        path = Path(source)
        try:
            if not path.exists():
                raise VideoNotFoundError(f"{name}: there is no such file (looked in {Path.cwd()}); check the path")
            if not path.is_file():
                raise VideoLoadError(f"{name} is not a regular file; name a video's file")
            file = path.open("rb")
        except VideoLoadError:
            raise
        except (OSError, ValueError) as error:  # no permission, a name too long, a null byte in it
            reason = getattr(error, "strerror", None) or error
            raise VideoLoadError(f"{name} cannot be read: {reason}; check the path and its permissions") from error
    if not file.read(1):
        file.close()
        raise VideoLoadError(f"{name}: the file is empty; get it again or leave it out")
    return file


@contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container at its beginning, and choose the stream of pictures."""
    import av
    from av.stream import Disposition

    file.seek(0)
    try:
        container = av.open(file, "r", metadata_errors="replace", options={"format_whitelist": FORMATS})
    except (av.FFmpegError, *DAMAGE) as error:
        raise VideoLoadError(
            f"{name}: this is no video, or it is truncated or damaged ({_reason(error)}); give MP4, Matroska, WebM, "
            "AVI, MPEG, ..."
        ) from error
    with container:
        # A cover picture counts as a stream of pictures, and is none.
        streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        if not streams and container.streams.audio:
            raise VideoLoadError(f"{name}: this file has sound and no moving pictures; leave it out")
        if not streams:
            raise VideoLoadError(damaged(name, "it has no stream of pictures"))
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
        if stream.codec_context is None:
            raise VideoLoadError(
                f"{name}: FFmpeg has no decoder for this video, or it is truncated or damaged; encode it anew as H.264"
            )
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = DECODING_THREADS
        yield container, stream


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
