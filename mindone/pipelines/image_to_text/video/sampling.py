"""FrameSampling: how many frames of a video are read, and which."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# Mode -> its default number of frames.
DEFAULT_COUNTS = {"middle": 1, "even": 4, "grid": 4}
MAX_COUNT = 64  # limits memory: each frame is an uncompressed image


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video are read.

    The video is divided into `count` parts of equal duration, and the frame that is visible in the middle of each part
    is selected. Dividing by time rather than by frame number makes the selection independent of a variable frame rate.
    A frame that is selected for two parts is read once, so a short video can yield fewer than `count` frames.

    Args:
        mode: "middle" (the frame halfway through), "even" (several frames as separate images) or "grid" (several
            frames in reading order in one image, which is at most as large as one frame).
        count: number of frames, from 1 to 64; by default 1 for "middle", which allows no other value, and 4 otherwise.

    Raises:
        ValueError: the mode is unknown, or the count is out of range.

    Example:
        >>> from mindone.pipelines.image_to_text.video import FrameSampling
        >>> FrameSampling("even", 3).picks([0, 40, 80, 120, 160, 200], end=240)
        [1, 3, 5]
        >>> FrameSampling("middle").picks([0, 10, 20, 1000], end=4000)  # the last frame is visible for three seconds
        [3]
    """

    mode: str = "middle"
    count: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in DEFAULT_COUNTS:
            raise ValueError(f"unknown frame sampling mode {self.mode!r}: expected {', '.join(DEFAULT_COUNTS)}")
        count = DEFAULT_COUNTS[self.mode] if self.count is None else self.count
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_COUNT:
            raise ValueError(f"count is {self.count!r}, expected an integer from 1 to {MAX_COUNT}")
        if self.mode == "middle" and count != 1:
            raise ValueError(
                f"mode 'middle' reads one frame, but count is {count}: use 'even' or 'grid' for several frames"
            )
        object.__setattr__(self, "count", count)

    def picks(self, timestamps: Sequence[int], end: int) -> list[int]:
        """Return the indices of the selected frames in `timestamps`, ascending.

        Args:
            timestamps: start time of each frame, ascending, in any unit; at least one.
            end: end time of the last frame.
        """
        start, count = timestamps[0], self.count or 1
        middles = (start + (end - start) * (2 * part + 1) // (2 * count) for part in range(count))
        return sorted({bisect_right(timestamps, moment) - 1 for moment in middles})
