"""One pass over a video's packets, without decoding: when its frames appear, and whether it is whole."""

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

USUAL_RATE = Fraction(25)  # of a single frame in a file that states none; FFmpeg's own assumption
# FFmpeg's names of the containers that state the time of every frame and lead to it. The others are decoded from the
# beginning: their times are counted on from what came before, which differs after a jump.
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf")
ROUNDING = Fraction(2, 100)  # so much may the stated rate differ: Matroska's timestamps are whole milliseconds
LOST = Fraction(9, 10)  # less than this part of the stated length is a file that was cut off


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video appear; 8 bytes a frame.

    Attributes:
        timestamps: ascending, in units of `time_base`; one for each frame.
        keyframes: those of the frames that decoding can start at, ascending; none where it is best begun at the
            beginning.
        end: when the last frame vanishes.
        time_base: seconds a unit.
        rate: frames a second, on average.
        stamped: False where the container does not say which frame a timestamp belongs to (B-frames in AVI, MPEG
            program streams); frames are then told apart by their order alone.
    """

    timestamps: Sequence[int]
    keyframes: Sequence[int]
    end: int
    time_base: Fraction
    rate: Fraction
    stamped: bool

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last."""
        return (self.end - self.timestamps[0]) * self.time_base

    def seconds(self, place: int) -> float:
        """When a frame appears, in seconds after the first."""
        return float((self.timestamps[place] - self.timestamps[0]) * self.time_base)

    def place(self, timestamp: int) -> int:
        """Return the place of the frame on the screen at `timestamp`."""
        return bisect_right(self.timestamps, timestamp) - 1


def scan(container: InputContainer, stream: VideoStream, name: str) -> Timeline:
    """Read all packets of a stream; `name` is the video's, for messages.

    Raises:
        VideoLoadError: there is no frame, or the file was cut off.
        av.FFmpegError: the container is damaged.
    """
    timestamps, keyframes = array("q"), array("q")
    count, length = 0, 0
    indexed = container.format.name in INDEXED
    stamped = not (
        container.format.name == "mpeg" or (container.format.name == "avi" and stream.codec_context.has_b_frames)
    )
    for packet in container.demux(stream):
        if packet.size == 0:  # the mark of the end
            continue
        count += 1
        if packet.is_corrupt:
            raise VideoLoadError(damaged(name, f"its packet {count} is not whole"))
        if packet.is_discard:  # cut away by the container's edit list: needed for decoding, never shown
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
        raise VideoLoadError(damaged(name, f"it has {count} of its {listed} packets"))
    timeline = _timeline(timestamps, keyframes, length, stream, stamped)
    stated = _stated_seconds(container, stream)
    if timeline.duration < stated * LOST:
        raise VideoLoadError(
            damaged(name, f"its frames end after {float(timeline.duration):.2f} s of {float(stated):.2f} s")
        )
    return timeline


def _timeline(
    timestamps: array[int], keyframes: array[int], length: int, stream: VideoStream, stamped: bool
) -> Timeline:
    """Sort what was read; frames without a place in time stand at equal distances."""
    rate = stream.average_rate or stream.guessed_rate or USUAL_RATE
    if not stamped or stream.time_base is None:
        places = range(len(timestamps))
        return Timeline(places, (), len(places), 1 / rate, rate, stamped=False)
    times = array("q", sorted(timestamps))
    if not length:  # no packet says how long it is shown: as long as the one before, or as usual
        gap = times[-1] - times[-2] if len(times) > 1 else 0
        length = gap or max(1, round(1 / rate / stream.time_base))
    end = times[-1] + length
    duration = (end - times[0]) * stream.time_base
    counted = len(times) / duration
    if abs(rate / counted - 1) > ROUNDING:
        rate = counted
    return Timeline(times, array("q", sorted(keyframes)), end, stream.time_base, rate, True)


def _stated_seconds(container: InputContainer, stream: VideoStream) -> Fraction:
    """How long the stream was when it was written, 0 where the container does not say.

    A stream's own length only: the container's is that of its longest stream, which may be a sound.
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
