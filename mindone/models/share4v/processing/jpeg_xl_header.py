"""The size of a JPEG XL image, read from its header: the plug-in decodes at once, so limits must be checked before.

Source: ISO/IEC 18181-1, SizeHeader; 18181-2, boxes.
"""

from __future__ import annotations

from .image_limits import LimitedFile

_CODESTREAM = b"\xff\x0a"
_BOX_HEAD = 8
_MAX_BOXES = 64  # before the codestream; usual files have 3
_SIZE_BITS = (9, 13, 18, 30)
# Width : height, by the ratio's number.
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


class _Bits:
    """Reads bits, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def read(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the JPEG XL header is truncated")
        self._left -= count
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value

    def edge(self, is_small: bool) -> int:
        """Return a width or height: a multiple of 8 up to 256, or any number."""
        if is_small:
            return 8 * (self.read(5) + 1)
        return self.read(_SIZE_BITS[self.read(2)]) + 1


def jpeg_xl_size(file: LimitedFile) -> tuple[int, int]:
    """Return (width, height) as stored, before orientation.

    Raises:
        ValueError: the file is damaged, or its codestream is far from the beginning.
    """
    file.seek(_codestream(file))
    bits = _Bits(file.read(12)[2:])
    is_small = bool(bits.read(1))
    height = bits.edge(is_small)
    ratio = bits.read(3)
    if not ratio:
        return bits.edge(is_small), height
    numerator, denominator = _RATIOS[ratio]
    return height * numerator // denominator, height


def _codestream(file: LimitedFile) -> int:
    """Return the offset of the codestream: 0, or that of the data of the first box that contains a part of it."""
    file.seek(0)
    if file.read(2) == _CODESTREAM:
        return 0
    position = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        head = file.read(_BOX_HEAD)
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        start = position + _BOX_HEAD
        if size == 1:  # 64 bits
            size = int.from_bytes(file.read(8), "big")
            start += 8
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0  # number of the part
            file.seek(start)
            if file.read(2) == _CODESTREAM:
                return start
            break
        if size < _BOX_HEAD or position + size > file.size:
            break
        position += size
    raise ValueError("the JPEG XL file has no codestream")
