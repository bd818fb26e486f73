"""One pass over a video's packets, without decoding: the times of its frames, and whether the file is complete."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from .errors import VideoLoadError, damaged

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

DEFAULT_RATE = Fraction(25)  # frames per second, if the file states none; FFmpeg's default
# FFmpeg's names of the containers that store the time of every frame and support exact seeking. Other containers are
# decoded from the beginning: their times are computed from the preceding frames, and so differ after seeking.
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf")
RATE_TOLERANCE = Fraction(2, 100)  # relative error of the stated rate; Matroska rounds timestamps to milliseconds
MIN_COMPLETE = Fraction(9, 10)  # a file with less than this part of its stated duration is truncated


@dataclass(frozen=True)
class Timeline:
    """The times of the frames of a video; 8 bytes per frame.

    Attributes:
        timestamps: start time of each frame, ascending, in units of `time_base`.
        keyframes: timestamps of the frames at which decoding can start, ascending; empty if decoding should start at
            the beginning.
        end: end time of the last frame.
        time_base: seconds per unit.
        rate: average frames per second.
        stamped: False if the container does not tell which frame a timestamp belongs to (B-frames in AVI, MPEG program
            streams); frames are then identified by their order only.
        pixel_aspect_ratio: width of a pixel divided by its height; None if the file does not state it.
    """

    timestamps: Sequence[int]
    keyframes: Sequence[int]
    end: int
    time_base: Fraction
    rate: Fraction
    stamped: bool
    pixel_aspect_ratio: Fraction | None = None

    @property
    def duration(self) -> Fraction:
        """Seconds from the start of the first frame to the end of the last."""
        return (self.end - self.timestamps[0]) * self.time_base

    def seconds(self, index: int) -> float:
        """Return the start time of a frame, in seconds after the first frame."""
        return float((self.timestamps[index] - self.timestamps[0]) * self.time_base)

    def index_at(self, timestamp: int) -> int:
        """Return the index of the frame that is visible at `timestamp`."""
        return bisect_right(self.timestamps, timestamp) - 1


def scan(container: InputContainer, stream: VideoStream, name: str) -> Timeline:
    """Read all packets of a stream; `name` is the name of the video for messages.

    Raises:
        VideoLoadError: there are no frames, or the file is truncated.
        av.FFmpegError: the container is damaged.
    """
    timestamps, keyframes = array("q"), array("q")
    count, length = 0, 0
    indexed = container.format.name in INDEXED
    stamped = not (
        container.format.name == "mpeg" or (container.format.name == "avi" and stream.codec_context.has_b_frames)
    )
    for packet in container.demux(stream):
        if packet.size == 0:  # the end-of-stream packet
            continue
        count += 1
        if packet.is_corrupt:
            raise VideoLoadError(damaged(name, f"packet {count} is incomplete"))
        if packet.is_discard:  # removed by the container's edit list: needed for decoding, never shown
            continue
        if packet.pts is None:
            stamped = False
        timestamps.append(len(timestamps) if packet.pts is None else packet.pts)
        if indexed and packet.is_keyframe and packet.pts is not None:
            keyframes.append(packet.pts)
        length = packet.duration or length
    if not timestamps:
        raise VideoLoadError(damaged(name, "it has no frames"))
    listed = len(stream.index_entries)
    if count < listed:
        raise VideoLoadError(damaged(name, f"it has only {count} of its {listed} packets"))
    timeline = _timeline(timestamps, keyframes, length, stream, stamped)
    stated = _stated_seconds(container, stream)
    if timeline.duration < stated * MIN_COMPLETE:
        raise VideoLoadError(
            damaged(name, f"its frames end after {float(timeline.duration):.2f} s of {float(stated):.2f} s")
        )
    return timeline


def _timeline(
    timestamps: array[int], keyframes: array[int], length: int, stream: VideoStream, stamped: bool
) -> Timeline:
    """Sort the timestamps; frames without timestamps are spaced evenly."""
    rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
    if not stamped or stream.time_base is None:
        indices = range(len(timestamps))
        return Timeline(indices, (), len(indices), 1 / rate, rate, False, stream.sample_aspect_ratio)
    times = array("q", sorted(timestamps))
    if not length:  # no packet states its duration: use that of the frame before, or the rate
        gap = times[-1] - times[-2] if len(times) > 1 else 0
        length = gap or max(1, round(1 / rate / stream.time_base))
    end = times[-1] + length
    duration = (end - times[0]) * stream.time_base
    counted = len(times) / duration
    if abs(rate / counted - 1) > RATE_TOLERANCE:
        rate = counted
    return Timeline(times, array("q", sorted(keyframes)), end, stream.time_base, rate, True, stream.sample_aspect_ratio)


def _stated_seconds(container: InputContainer, stream: VideoStream) -> Fraction:
    """Return the duration that the container states for the stream, or 0 if it states none.

    The container's own duration is not used: it is that of the longest stream, which may be an audio stream.
    """
    if container.format.name == "avi" and stream.average_rate:
        return stream.frames / stream.average_rate
    hours, *rest = stream.metadata.get("DURATION", "").split(":")  # Matroska: 00:00:03.000000000
    if len(rest) != 2:
        return Fraction(0)
    try:
        return 3600 * Fraction(hours) + 60 * Fraction(rest[0]) + Fraction(rest[1])
    except ValueError:
        return Fraction(0)
