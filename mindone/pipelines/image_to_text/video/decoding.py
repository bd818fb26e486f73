"""Decoding of selected frames; as much as possible of the video between them is skipped."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from .display import as_shown
from .errors import VideoLoadError, damaged
from .scanning import Timeline

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL.Image import Image as PILImage

    Opened = tuple[InputContainer, VideoStream]

MAX_HIDDEN = 2  # consecutive packets that may not be shown (VP8's alternate reference frames)


def decode(
    opened: Callable[[], AbstractContextManager[Opened]], timeline: Timeline, indices: Sequence[int], name: str
) -> Iterator[PILImage]:
    """Yield the frames at `indices` as a player shows them; one frame at a time is in memory.

    Args:
        opened: opens the video again, at its beginning.
        timeline: the result of `scan`.
        indices: indices into `timeline.timestamps`, ascending.
        name: name of the video for messages.

    Raises:
        VideoLoadError: a frame cannot be decoded.
        av.FFmpegError: the data is damaged.
    """
    if timeline.stamped:
        with _Decoder(opened, timeline, name) as decoder:
            for index in indices:
                yield as_shown(decoder.frame_at(index), timeline.pixel_aspect_ratio, name)
        return
    wanted, found = list(indices), 0
    with opened() as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index == wanted[found]:
                yield as_shown(frame, timeline.pixel_aspect_ratio, name)
                found += 1
                if found == len(wanted):
                    return
    raise VideoLoadError(_missing(name, timeline, wanted[found]))


class _Decoder:
    """Decodes single frames of a stream with timestamps, starting from the keyframe before each of them."""

    def __init__(self, opened: Callable[[], AbstractContextManager[Opened]], timeline: Timeline, name: str) -> None:
        self._opened, self._timeline, self._name = opened, timeline, name
        self._stack = ExitStack()
        self._shown: VideoFrame | None = None  # the last decoded frame at or before the target
        self._ahead: VideoFrame | None = None  # the frame after it, if it was decoded already

    def __enter__(self) -> _Decoder:
        self._restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def frame_at(self, index: int) -> VideoFrame:
        target = self._timeline.timestamps[index]
        for prepare in self._attempts(target):
            frame = self._decode_to(target) if prepare() else None
            if frame is not None and self._timeline.index_at(_pts(frame)) >= index - MAX_HIDDEN:
                return frame
        raise VideoLoadError(_missing(self._name, self._timeline, index))

    def _attempts(self, target: int) -> Iterator[Callable[[], bool]]:
        """Yield ways to get to a point before `target`, cheapest first: a container's index can be wrong."""
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
        """Seek to a keyframe at or before `target`; return False if the container does not lead to one.

        Without an index, a container can seek to any packet. Frames decoded from there, before the next keyframe, look
        valid but are garbage, because the frames that they refer to were never decoded.
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

    def _decode_to(self, target: int) -> VideoFrame | None:
        """Decode up to `target`; return the last frame at or before it, or None if decoding started after it."""
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


def _missing(name: str, timeline: Timeline, index: int) -> str:
    return damaged(name, f"the frame at {timeline.seconds(index):.2f} s cannot be decoded")
