"""FrameSampling: how many frames of a video are looked at, and which."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# Mode -> how many frames it takes where no count is given.
DEFAULT_COUNTS = {"middle": 1, "even": 4, "grid": 4}
MAX_COUNT = 64  # each is a whole picture in memory


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video become pictures.

    The video is cut into `count` parts of equal length, and the frame on the screen in the middle of each part is
    taken. It is time that is cut, not the number of frames, so that a variable frame rate changes nothing. Where two
    parts show the same frame it is taken once: a short video gives fewer than `count`.

    Args:
        mode: "middle" (the frame halfway through), "even" (several frames as several pictures) or "grid" (several
            frames side by side in one picture no larger than one frame, in reading order).
        count: how many frames, from 1 to 64; by default 1 for "middle", which takes no other, and 4 for the others.

    Raises:
        ValueError: the mode is not known, or the count is out of range.

    Example:
        >>> from mindone.pipelines.image_to_text.video import FrameSampling
        >>> FrameSampling("even", 3).picks([0, 40, 80, 120, 160, 200], end=240)
        [1, 3, 5]
        >>> FrameSampling("middle").picks([0, 10, 20, 1000], end=4000)  # the last frame stays for three seconds
        [3]
    """

    mode: str = "middle"
    count: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in DEFAULT_COUNTS:
            raise ValueError(f"frame sampling mode {self.mode!r} is not known: expected {', '.join(DEFAULT_COUNTS)}")
        count = DEFAULT_COUNTS[self.mode] if self.count is None else self.count
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_COUNT:
            raise ValueError(f"count is {self.count!r}: expected an integer from 1 to {MAX_COUNT}")
        if self.mode == "middle" and count != 1:
            raise ValueError(f"mode 'middle' takes one frame, and count is {count}: use 'even' or 'grid' for several")
        object.__setattr__(self, "count", count)

    def picks(self, timestamps: Sequence[int], end: int) -> list[int]:
        """Return the places in `timestamps` of the frames to take, ascending.

        Args:
            timestamps: when each frame appears, ascending, in any unit; at least one.
            end: when the last frame vanishes.
        """
        start, count = timestamps[0], self.count or 1
        middles = (start + (end - start) * (2 * part + 1) // (2 * count) for part in range(count))
        return sorted({bisect_right(timestamps, moment) - 1 for moment in middles})
