"""A PNG encoder for every colour type and bit depth, written from the specification."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
# Adam7: first row, first column, row step, column step of each pass.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(kind: bytes, data: bytes, checksum_error: int = 0) -> bytes:
    """Return a chunk; a `checksum_error` other than 0 makes its CRC wrong."""
    crc = zlib.crc32(kind + data) ^ checksum_error
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def encode_png(
    samples: np.ndarray, depth: int, color_type: int, before_pixels: bytes = b"", interlaced: bool = False
) -> bytes:
    """Encode samples [H, W, C] of `depth` bits; `before_pixels` are chunks such as PLTE and tRNS."""
    height, width = samples.shape[:2]
    rows = []
    for top, left, down, right in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        part = samples[top::down, left::right]
        rows += [b"\0" + _packed(row, depth) for row in part if part.size]
    head = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return SIGNATURE + chunk(b"IHDR", head) + before_pixels + pixels + chunk(b"IEND", b"")


def _packed(row: np.ndarray, depth: int) -> bytes:
    values = row.reshape(-1)
    if depth == 16:
        return values.astype(">u2").tobytes()
    bits = values[:, None] >> np.arange(depth - 1, -1, -1) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()
