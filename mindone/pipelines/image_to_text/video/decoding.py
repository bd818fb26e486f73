"""From places on a timeline to pictures; between them as much of the video is skipped as can be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from .errors import VideoLoadError, damaged
from .scanning import Timeline

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL.Image import Image as PILImage

    Opened = tuple[InputContainer, VideoStream]

HIDDEN = 2  # so many packets in a row may show nothing (VP8's alternate reference frames) before a frame is missed
# FFmpeg's angle is counter-clockwise, as Pillow's names are.
TURNS = {90: "ROTATE_90", 180: "ROTATE_180", 270: "ROTATE_270"}


def decode(
    opened: Callable[[], AbstractContextManager[Opened]], timeline: Timeline, places: Sequence[int], name: str
) -> Iterator[PILImage]:
    """Yield the upright pictures of the frames at `places`, which ascend; one frame is held at a time.

    Args:
        opened: opens the video anew, at its beginning.
        timeline: as `scan` returned it.
        places: positions in `timeline.timestamps`.
        name: the video's, for messages.

    Raises:
        VideoLoadError: a frame cannot be decoded.
        av.FFmpegError: the data is damaged.
    """
    if timeline.stamped:
        with _Decoder(opened, timeline, name) as decoder:
            for place in places:
                yield _upright(decoder.frame_at(place), name)
        return
    wanted, found = list(places), 0
    with opened() as (container, stream):
        for place, frame in enumerate(container.decode(stream)):
            if place == wanted[found]:
                yield _upright(frame, name)
                found += 1
                if found == len(wanted):
                    return
    raise VideoLoadError(_missing(name, timeline, wanted[found]))


class _Decoder:
    """Reads a stream whose frames have timestamps, from keyframe to keyframe."""

    def __init__(self, opened: Callable[[], AbstractContextManager[Opened]], timeline: Timeline, name: str) -> None:
        self._opened, self._timeline, self._name = opened, timeline, name
        self._stack = ExitStack()
        self._shown: VideoFrame | None = None  # the last one at or before what was asked
        self._ahead: VideoFrame | None = None  # the one after it, if it was decoded

    def __enter__(self) -> _Decoder:
        self._restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def frame_at(self, place: int) -> VideoFrame:
        target = self._timeline.timestamps[place]
        for prepare in self._attempts(target):
            frame = self._run_to(target) if prepare() else None
            if frame is not None and self._timeline.place(_pts(frame)) >= place - HIDDEN:
                return frame
        raise VideoLoadError(_missing(self._name, self._timeline, place))

    def _attempts(self, target: int) -> Iterator[Callable[[], bool]]:
        """Yield ways to get before `target`, the cheapest first: an index may lead a little too far, or nowhere."""
        keyframes = self._timeline.keyframes
        nearest = bisect_right(keyframes, target) - 1
        reached = None if self._shown is None else _pts(self._shown)
        if reached is not None and reached <= target and (nearest < 0 or keyframes[nearest] <= reached):
            yield lambda: True
        for step in (0, 1):
            if nearest - step > 0:
                yield partial(self._seek, keyframes[nearest - step], target)
        yield self._restart

    def _seek(self, timestamp: int, target: int) -> bool:
        """Go to a keyframe at or before `target`; False where the container does not lead to one.

        Containers without an index lead anywhere, and what is decoded between keyframes is made of frames that were
        never seen: looks like a frame, and is none.
        """
        from av import FFmpegError

        try:
            self._container.seek(timestamp, stream=self._stream)
        except FFmpegError:
            return False
        packets = self._container.demux(self._stream)
        first = next((packet for packet in packets if packet.size and packet.is_keyframe), None)
        if first is None or first.pts is None or first.pts > target:
            return False
        self._start(chain((first,), packets))
        return True

    def _restart(self) -> bool:
        self._stack.close()
        self._container, self._stream = self._stack.enter_context(self._opened())
        self._start(self._container.demux(self._stream))
        return True

    def _start(self, packets: Iterable[Packet]) -> None:
        self._frames: Iterator[Any] = (frame for packet in packets for frame in packet.decode())
        self._shown = self._ahead = None

    def _run_to(self, target: int) -> VideoFrame | None:
        """Decode until the frame of `target`, or the first one behind it; None where decoding began behind it."""
        while True:
            frame = self._ahead if self._ahead is not None else next(self._frames, None)
            if frame is None:
                return self._shown
            if _pts(frame) > target:
                self._ahead = frame
                return self._shown
            self._shown, self._ahead = frame, None
            if _pts(frame) == target:
                return frame


def _pts(frame: VideoFrame) -> int:
    return -1 if frame.pts is None else frame.pts


def _upright(frame: VideoFrame, name: str) -> PILImage:
    """Turn a frame as the container's display matrix says; angles between the quarters are left as they are."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and frame.width * frame.height > limit:
        raise VideoLoadError(
            f"{name}: frames of {frame.width} x {frame.height} pixels are larger than Pillow's limit of {limit:,}; "
            "make the video smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )
    turn = TURNS.get(frame.rotation % 360)
    picture: PILImage = frame.to_image()
    return picture if turn is None else picture.transpose(Image.Transpose[turn])


def _missing(name: str, timeline: Timeline, place: int) -> str:
    return damaged(name, f"the frame at {timeline.seconds(place):.2f} s cannot be decoded")
