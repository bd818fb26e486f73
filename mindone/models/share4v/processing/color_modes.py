"""Conversion of all Pillow modes to upright 8-bit RGB: transparency, high-bit-depth greyscale and EXIF orientation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_ORIENTATION_TAG = 0x0112
# EXIF 2.3, tag 0x0112: the transposition that makes the stored image upright. 1 means that it is upright already.
_TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_HIGH_DEPTH_MODES = ("I", "F")  # and the byte orders of I;16
# Some Pillow releases open 16-bit greyscale of these formats in mode "I"; its range is always 0 to 65535.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
_STRIP_PIXELS = 2**22  # converted at a time, so that a large image needs no copies of several times its size


def to_rgb(image: PILImage) -> PILImage:
    """Return a new image in mode RGB; intermediate results are made for `_STRIP_PIXELS` at a time.

    Raises:
        ValueError: the pixels are not finite, or Pillow cannot convert the mode (such as LAB).
    """
    from PIL import Image

    convert: Callable[[PILImage], PILImage] = _over_white
    if image.mode in _HIGH_DEPTH_MODES or image.mode.startswith("I;16"):
        low, high = _extremes(image)
        scale, offset = _range_of(low, high, image.mode, image.format)
        transparent = image.info.get("transparency")

        def convert_grey(strip: PILImage) -> PILImage:
            pixels = np.asarray(strip)
            grey = np.rint((pixels.astype(np.float64) - offset) * scale).astype(np.uint8)
            if isinstance(transparent, int):
                grey[pixels == transparent] = 255
            return Image.fromarray(grey).convert("RGB")

        convert = convert_grey
    elif image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image.convert("RGB")
    result = Image.new("RGB", image.size)
    for box in _strips(image):
        result.paste(convert(image.crop(box)), box)
    return result


def _over_white(image: PILImage) -> PILImage:
    from PIL import Image

    # Pillow converts La to RGBA only through LA.
    layer = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _strips(image: PILImage) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes (left, top, right, bottom) that cover an image, each of at most `_STRIP_PIXELS` or one row."""
    rows = max(1, _STRIP_PIXELS // max(image.width, 1))
    for top in range(0, image.height, rows):
        yield (0, top, image.width, min(top + rows, image.height))


def _extremes(image: PILImage) -> tuple[float, float]:
    """Return the lowest and highest grey value.

    Raises:
        ValueError: some are NaN or infinite.
    """
    strips = (np.asarray(image.crop(box)) for box in _strips(image))
    extremes = [(float(pixels.min()), float(pixels.max())) for pixels in strips]
    low = float(np.min([pair[0] for pair in extremes]))
    high = float(np.max([pair[1] for pair in extremes]))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("some grey values are NaN or infinite")
    return low, high


def upright(image: PILImage, source: PILImage) -> PILImage:
    """Apply the EXIF (or XMP) orientation of `source` to `image`; unreadable EXIF is ignored."""
    from PIL import Image

    if source.format == "JXL" and not getattr(source, "jpeg", False):
        return image  # the decoder has applied the orientation in the header, which takes precedence over EXIF
    try:
        orientation = source.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata must not make a good image fail
        return image
    transposition = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image if transposition is None else image.transpose(Image.Transpose[transposition])


def _range_of(low: float, high: float, mode: str, file_format: str | None) -> tuple[float, float]:
    """Return (scale, offset) that map grey values to 0..255."""
    if mode == "F" and low >= 0 and high <= 1:
        return 255.0, 0.0
    sixteen_bits = mode.startswith("I;16") or (mode == "I" and file_format in _SIXTEEN_BIT_FORMATS)
    if not sixteen_bits and low >= 0 and high <= 255:
        return 1.0, 0.0  # 8-bit values in a wider type, as from Image.convert("I")
    if mode != "F" and low >= 0 and high <= 65535:
        return 255 / 65535, 0.0
    return 255 / max(high - low, 1e-12), low  # the format states no range: use that of the image
