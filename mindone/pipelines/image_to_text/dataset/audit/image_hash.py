"""Perceptual hash of an image: the mean values of its blocks (Yang, Gu and Niu 2006), brightness and color, as numbers.

A hash of bits, such as the usual 64 signs of a cosine transform, cannot tell a circle from a square in a corner of the
picture, and is random where a picture is flat. Here the largest difference of two blocks decides, so one that changed
is enough; compression and another size change all blocks a little. README of `benchmarks/` has the figures.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

BLOCKS = 20  # of the brightness, per side; half as many of each color channel, as JPEG stores them
BITS = 6  # of a value
MAX_DIFFERENCE = 2  # of 63, up to which two blocks are the same
LENGTH = BLOCKS * BLOCKS + 2 * (BLOCKS // 2) ** 2
_BYTES = LENGTH * BITS // 8


def image_hash(image: PILImage) -> str:
    """Return the hash of an RGB image: 600 characters of base64.

    Example:
        >>> from PIL import Image
        >>> from mindone.pipelines.image_to_text.dataset.audit.image_hash import image_hash, near_equal, read_hash
        >>> red, larger = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (400, 300), "red")
        >>> image_hash(red) == image_hash(larger), len(image_hash(red))
        (True, 600)
        >>> near_equal(read_hash(image_hash(red)), read_hash(image_hash(Image.new("RGB", (40, 30), "blue"))))
        False
    """
    from PIL import Image

    small = image.resize((BLOCKS, BLOCKS), Image.Resampling.HAMMING, reducing_gap=3.0).convert("YCbCr")
    brightness, *colors = np.moveaxis(np.asarray(small, np.uint16), 2, 0)
    half = BLOCKS // 2
    means = [color.reshape(half, 2, half, 2).sum((1, 3)) // 4 for color in colors]
    values = np.concatenate([channel.ravel() for channel in (brightness, *means)]) >> (8 - BITS)  # [LENGTH], 0 to 63
    bits = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, -BITS:]
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def hash_of_frames(images: Sequence[PILImage]) -> str:
    """Return the hash of an input: of its image, or of the frame in the middle of a video's."""
    return image_hash(images[len(images) // 2])


def read_hash(text: str) -> NDArray[np.int8]:
    """Return the values of a hash, int8 [LENGTH].

    Raises:
        ValueError: it is no hash that `image_hash` made.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not a hash of an image: {text!r:.40}") from error
    if len(data) != _BYTES:
        raise ValueError(f"a hash of an image has {_BYTES} bytes, got {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(LENGTH, BITS)
    return (bits @ (1 << np.arange(BITS - 1, -1, -1, dtype=np.uint8))).astype(np.int8)


def near_equal(one: NDArray[np.int8], other: NDArray[np.int8]) -> bool:
    """Return whether no block of two images differs."""
    return bool(np.abs(one - other).max() <= MAX_DIFFERENCE)
