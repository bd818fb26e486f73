"""Reading the pixels of an opened image, where Pillow's result would differ from the format's specification.

Found by comparing every mode and bit depth with ImageMagick and FFmpeg (tests/models/share4v/processing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from PIL.ImageFile import ImageFile

_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339  # TIFF tags
_WHITE_IS_ZERO, _SEPARATE = 0, 2
_GREY_STEPS = {"L;2": 255 // 3, "L;4": 255 // 15}  # 8-bit value of the darkest grey that is not black
_STRIP_ROWS = 256
# In the messages of Pillow's plug-ins about files that are valid, but of a variant that they do not decode.
_UNSUPPORTED = ("unsupported", "unknown pixel mode", "unknown pcx mode", "unknown tga", "decoder error -2")

_OUT_OF_MEMORY = ("decoder error -9", "out of memory")


def load_pixels(image: PILImage) -> PILImage:
    """Read the pixels of an image that was opened, unless they have been read, and return the image or a corrected one.

    Raises:
        Exception: almost any, from a plug-in that reads damaged data.
    """
    tiles = list(getattr(image, "tile", None) or ())
    rawmode = _rawmode(tiles[0]) if tiles else ""
    if image.format == "PNG" and rawmode in _GREY_STEPS and isinstance(image.info.get("transparency"), int):
        # Pillow scales the pixels of 2 and 4 bits, but not the transparent value that they are compared with.
        image.info["transparency"] *= _GREY_STEPS[rawmode]
    if image.format == "PNG" and rawmode == "RGB;16B" and "transparency" in image.info:
        return _with_transparent_color(image)  # type: ignore[arg-type]
    if image.format == "TIFF" and tiles:
        return _load_tiff(image, tiles)
    image.load()
    return image


def is_unsupported(error: Exception) -> bool:
    """Return whether an error of Pillow says that a variant of a format is not decoded, not that a file is damaged."""
    return any(words in str(error).lower() for words in _UNSUPPORTED)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of Pillow says that its decoder, in C, got no memory."""
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _with_transparent_color(image: ImageFile) -> PILImage:
    """Read a PNG of 16 bits per channel with a transparent color.

    Pillow keeps the high byte of each value, but compares it with the 16 bits of the color. The low bytes are decoded
    separately, since many colors have the same high bytes.
    """
    color = np.array(image.info.pop("transparency"), np.uint16)  # [3]
    file: Any = image.fp
    image.load()
    file.seek(0)
    low = type(image)(file)
    low.tile = [_with_rawmode(low.tile[0], "RGB;16L")]  # of big-endian values, the second byte
    low.info.pop("transparency", None)
    low.load()
    alpha = np.full((image.height, image.width), 255, np.uint8)
    for top in range(0, image.height, _STRIP_ROWS):
        box = (0, top, image.width, min(top + _STRIP_ROWS, image.height))
        is_high = np.asarray(image.crop(box)) == (color >> 8).astype(np.uint8)  # [rows, W, 3]
        is_low = np.asarray(low.crop(box)) == (color & 255).astype(np.uint8)
        alpha[top : box[3]][(is_high & is_low).all(axis=2)] = 0
    from PIL import Image

    image.putalpha(Image.fromarray(alpha))
    return image


def _load_tiff(image: PILImage, tiles: list[Any]) -> PILImage:
    from PIL import Image

    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, ())
    if tags.get(_PLANAR) == _SEPARATE and set(bits) == {16} and all(_rawmode(tile) in {*"RGBA"} for tile in tiles):
        # Pillow reads uncompressed planes of 16 bits as if they had 8.
        suffix = ";16B" if tags.prefix == b"MM" else ";16L"
        image.tile = [_with_rawmode(tile, _rawmode(tile) + suffix) for tile in tiles]  # type: ignore[attr-defined]
    rawmode = _rawmode(tiles[0])
    image.load()
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and rawmode.startswith("I;16"):
        return Image.fromarray(65535 - np.asarray(image).astype(np.uint16))  # Pillow inverts up to 8 bits only
    if rawmode.startswith("I;32") and "S" not in rawmode and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
        values = np.asarray(image)
        if values.min() < 0:  # Pillow has no unsigned 32 bits; such large values use the whole range
            return Image.fromarray((values.view(np.uint32) >> 24).astype(np.uint8))
    return image


def _rawmode(tile: Any) -> str:
    """Return how the data of a tile is laid out; tiles are (codec, box, offset, arguments)."""
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, (tuple, list)) and arguments else arguments
    return first if isinstance(first, str) else ""


def _with_rawmode(tile: Any, rawmode: str) -> Any:
    arguments = (rawmode, *tile[3][1:]) if isinstance(tile[3], (tuple, list)) else rawmode
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)
