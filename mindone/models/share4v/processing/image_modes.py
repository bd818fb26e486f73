"""Pillow's modes to upright 8-bit RGB: transparency over white, deep greys scaled, EXIF orientation applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_ORIENTATION_TAG = 0x0112
# EXIF 2.3, tag 0x0112: how the stored picture must be turned to stand upright. 1 is upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_DEEP_MODES = ("I", "F")  # and I;16 in its byte orders
# Some releases of Pillow give 16-bit greys of these formats in mode "I"; their range is always 65535.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")


def to_rgb(image: PILImage) -> PILImage:
    """Return a new image in mode RGB.

    Raises:
        ValueError: the pixels are not finite, or Pillow cannot convert the mode (LAB).
    """
    from PIL import Image

    if image.mode in _DEEP_MODES or image.mode.startswith("I;16"):
        return Image.fromarray(_deep_grey(np.asarray(image), image.mode, image.format)).convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        # PA and La reach RGBA only by a step between.
        layer = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def upright(image: PILImage, source: PILImage) -> PILImage:
    """Turn `image` as the EXIF (or XMP) orientation of `source` says; unreadable EXIF counts as none."""
    from PIL import Image

    try:
        orientation = source.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata is no reason to lose a sound picture
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _deep_grey(pixels: np.ndarray, mode: str, file_format: str | None) -> np.ndarray:
    """Scale greys of more than 8 bits to uint8 by the range that they are in, not clipping any."""
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("its grey values are not all finite numbers")
    scale, offset = _range_of(low, high, mode, file_format)
    return np.rint((pixels.astype(np.float64) - offset) * scale).astype(np.uint8)


def _range_of(low: float, high: float, mode: str, file_format: str | None) -> tuple[float, float]:
    """Return (scale, offset) that bring grey values to 0..255."""
    if mode == "F" and low >= 0 and high <= 1:
        return 255.0, 0.0
    sixteen_bits = mode.startswith("I;16") or (mode == "I" and file_format in _SIXTEEN_BIT_FORMATS)
    if not sixteen_bits and low >= 0 and high <= 255:
        return 1.0, 0.0  # eight bits in a wide type, as Image.convert("I") makes them
    if mode != "F" and low >= 0 and high <= 65535:
        return 255 / 65535, 0.0
    return 255 / max(high - low, 1e-12), low  # no range is stated: the picture's own
