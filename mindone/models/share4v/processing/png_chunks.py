"""PNG files without the chunks that Pillow rejects and browsers ignore.

Pillow reads every chunk and fails if an ancillary one has a wrong checksum, or if text or a color profile unpacks to
more than 1 MB; its limits are global settings, and so cannot be raised for one file. Nothing in these chunks changes
the pixels, so they are left out before Pillow sees the file. An ancillary chunk that is needed but has a wrong checksum
is left out too, as in libpng.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from itertools import accumulate

from .image_limits import LimitedFile

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD, _CHECKSUM = 8, 4  # bytes: length and type; CRC-32
# Ancillary chunks that are kept, and their maximum lengths: transparency and orientation.
_MAX_LENGTHS = {b"tRNS": 256, b"eXIf": 2**20}
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Keywords of texts that may contain an orientation.
_ORIENTATION_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_MAX_TEXT = 2**20  # as in Pillow; of the text when it is unpacked
_MAX_KEYWORD = 79
_MAX_TEXTS = 8  # of the same keyword


class FileSpans:
    """A readable file that consists of spans of another one.

    Args:
        file: the other file.
        spans: (begin, end) of each span, ascending.
    """

    def __init__(self, file: LimitedFile, spans: list[tuple[int, int]]) -> None:
        self._file, self._spans, self._position = file, spans, 0
        self._starts = [0, *accumulate(end - begin for begin, end in spans)]

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, all that are left if it is negative."""
        pieces, left = [], self._starts[-1] if size < 0 else size
        while left and self._position < self._starts[-1]:
            index = bisect_right(self._starts, self._position) - 1
            begin, end = self._spans[index]
            offset = begin + self._position - self._starts[index]
            self._file.seek(offset)
            data = self._file.read(min(left, end - offset))
            if not data:
                break
            pieces.append(data)
            self._position += len(data)
            left -= len(data)
        return b"".join(pieces)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset, as `io.IOBase.seek` does."""
        base = (0, self._position, self._starts[-1])[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the current offset."""
        return self._position


def without_metadata(file: LimitedFile) -> FileSpans:
    """Return a PNG file with only the chunks that determine its first picture: pixels, transparency and orientation.

    Chunks of animations are left out too: the picture is the one that programs without animations show. Whatever is
    damaged otherwise stays as it is, so that Pillow's error says what is wrong.
    """
    spans = [(0, len(PNG_SIGNATURE))]
    position, texts = len(PNG_SIGNATURE), 0
    while True:
        file.seek(position)
        head = file.read(_HEAD)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = position + _HEAD + length + _CHECKSUM
        if len(head) < _HEAD or end > file.size:  # truncated
            _add(spans, position, file.size)
            break
        is_critical = not kind[0] & 0x20
        if is_critical or _is_kept(file, kind, length):
            texts += kind in _TEXTS
            if texts <= _MAX_TEXTS or kind not in _TEXTS:
                _add(spans, position, end)
        if kind == b"IEND":
            break
        position = end
    return FileSpans(file, spans)


def _add(spans: list[tuple[int, int]], begin: int, end: int) -> None:
    if spans[-1][1] == begin:
        spans[-1] = (spans[-1][0], end)
    else:
        spans.append((begin, end))


def _is_kept(file: LimitedFile, kind: bytes, length: int) -> bool:
    """Return whether an ancillary chunk is needed and undamaged; the file is at the beginning of its data."""
    if kind in _MAX_LENGTHS:
        return length <= _MAX_LENGTHS[kind] and _has_checksum(file, kind, file.read(length))
    if kind not in _TEXTS or length > _MAX_TEXT:
        return False
    data = file.read(min(length, _MAX_KEYWORD + 1))
    keyword = data.partition(b"\0")[0]
    if keyword not in _ORIENTATION_TEXTS:
        return False
    data += file.read(length - len(data))
    return _has_checksum(file, kind, data) and _unpacks(kind, data[len(keyword) + 1 :])


def _has_checksum(file: LimitedFile, kind: bytes, data: bytes) -> bool:
    return file.read(_CHECKSUM) == zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big")


def _unpacks(kind: bytes, data: bytes) -> bool:
    """Return whether the text of a chunk, behind its keyword, unpacks to at most `_MAX_TEXT` bytes."""
    if kind == b"tEXt":
        return True
    if kind == b"iTXt":
        if data[:1] != b"\1":
            return True
        data = b"\0" + data[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind language and translated keyword
    if data[:1] != b"\0":  # the only method of compression
        return False
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(data[1:], _MAX_TEXT)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail
