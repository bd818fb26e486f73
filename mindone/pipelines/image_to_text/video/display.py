"""Frames as a player shows them: with square pixels, rotated and mirrored as the file specifies."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.processing.image_limits import max_pixels

from .errors import VideoLoadError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from PIL.Image import Image as PILImage

# (is transposed, is mirrored horizontally, vertically), the latter two after the former -> Pillow's name for it.
_TRANSPOSITIONS = {
    (False, True, False): "FLIP_LEFT_RIGHT",
    (False, False, True): "FLIP_TOP_BOTTOM",
    (False, True, True): "ROTATE_180",
    (True, False, False): "TRANSPOSE",
    (True, True, False): "ROTATE_270",
    (True, False, True): "ROTATE_90",
    (True, True, True): "TRANSVERSE",
}
_MATRIX = struct.Struct("=9i")
_TOLERANCE = 0.02  # of the larger entries, below which the smaller ones of a matrix count as 0; about one degree


def shown_size(width: int, height: int, pixel_aspect_ratio: Fraction | None) -> tuple[int, int]:
    """Return the size (width, height) at which stored frames are shown, before rotation.

    Frames are enlarged, never reduced, as browsers and mpv do.

    Args:
        width, height: of the stored frames.
        pixel_aspect_ratio: width of a pixel divided by its height; None or 0 if the file does not state it.

    Example:
        >>> from fractions import Fraction
        >>> from mindone.pipelines.image_to_text.video.display import shown_size
        >>> shown_size(720, 576, Fraction(16, 11)), shown_size(720, 480, Fraction(8, 9))
        ((1047, 576), (720, 540))
    """
    if not pixel_aspect_ratio or pixel_aspect_ratio == 1:
        return width, height
    if pixel_aspect_ratio > 1:
        return round(width * pixel_aspect_ratio), height
    return width, round(height / pixel_aspect_ratio)


def as_shown(frame: VideoFrame, pixel_aspect_ratio: Fraction | None, name: str) -> PILImage:
    """Return a decoded frame as an RGB image with square pixels, rotated and mirrored by its display matrix.

    A rotation by an angle that is not a multiple of 90 degrees is ignored, as most players do.

    Raises:
        VideoLoadError: it has too many pixels; `name` is the name of the video.
    """
    from PIL import Image

    size, limit = shown_size(frame.width, frame.height, pixel_aspect_ratio), max_pixels()
    if limit is not None and max(frame.width * frame.height, size[0] * size[1]) > limit:
        raise VideoLoadError(
            f"{name}: frames of {size[0]} x {size[1]} pixels exceed the limit of {limit:,} pixels; resize the video"
        )
    image: PILImage = frame.to_image()
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    transposition = _TRANSPOSITIONS.get(_orientation(frame))
    return image if transposition is None else image.transpose(Image.Transpose[transposition])


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Return whether a frame is shown transposed, and then mirrored horizontally and vertically.

    The display matrix (ISO/IEC 14496-12, 8.3.2) maps a stored pixel (x, y) to (a x + c y, b x + d y).
    """
    side_data: Any = frame.side_data  # iterates over its entries, unlike what its type says
    data = next((bytes(one) for one in side_data if one.type.name == "DISPLAYMATRIX"), b"")
    if len(data) < _MATRIX.size:
        return False, False, False
    a, b, _, c, d, *_ = _MATRIX.unpack(data[: _MATRIX.size])
    straight, crossed = sorted((abs(a), abs(d))), sorted((abs(b), abs(c)))
    if straight[0] * _TOLERANCE > crossed[1]:
        return False, a < 0, d < 0
    if crossed[0] * _TOLERANCE > straight[1]:
        return True, c < 0, b < 0
    return False, False, False
