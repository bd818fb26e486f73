"""Random access to the bytes of archives: direct if a file is not compressed, else by decompressing in order."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any, BinaryIO, Protocol

from ..state.regular_files import open_input

WINDOW_BYTES = 64 * 2**20  # decompressed bytes that stay in memory
_CHUNK = 2**18
# First bytes of a compressed file -> function that opens it.
COMPRESSIONS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


class Archive(Protocol):
    """A file that is read by offset; any thread may read."""

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer at the end of the file.

        Raises:
            OSError, EOFError, lzma.LZMAError, zlib.error: the file cannot be read.
        """


def open_archive(path: str) -> Archive:
    """Open a file for reading by offset; its first bytes tell how it is compressed."""
    with open_input(path) as file:
        head = file.read(6)
    opener = next((opener for magic, opener in COMPRESSIONS.items() if head.startswith(magic)), None)
    return PlainArchive(path) if opener is None else CompressedArchive(lambda: opener(open_input(path), "rb"))


class PlainArchive:
    """A file that is not compressed.

    Attributes:
        size: its size in bytes.
    """

    def __init__(self, path: str) -> None:
        self._file = open_input(path)  # closed when the last reading thread is done
        self.size = os.fstat(self._file.fileno()).st_size
        self._lock = Lock()

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`."""
        size = max(0, min(size, self.size - offset))  # memory for `size` bytes is allocated before they are read
        if not hasattr(os, "pread"):
            with self._lock:
                self._file.seek(offset)
                return self._file.read(size)
        data = b""
        while len(data) < size and (piece := os.pread(self._file.fileno(), size - len(data), offset + len(data))):
            data = data + piece if data else piece
        return data


class CompressedArchive:
    """A compressed file, which can only be decompressed from its start.

    The last WINDOW_BYTES of decompressed data stay in memory, so that threads may ask slightly out of order; a request
    for older data decompresses the file again from its start.
    """

    def __init__(self, opener: Callable[[], BinaryIO]) -> None:
        self._opener, self._lock = opener, Lock()
        self._restart()

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` decompressed bytes from `offset`."""
        with self._lock:
            if offset < self._begin:
                self._restart()
            while self._end < offset + size:
                chunk = self._file.read(_CHUNK)
                if not chunk:
                    break
                self._chunks.append(chunk)
                self._end += len(chunk)
                while self._end - self._begin > WINDOW_BYTES and self._begin + len(self._chunks[0]) <= offset:
                    self._begin += len(self._chunks.popleft())
            return self._slice(offset, size)

    def _slice(self, offset: int, size: int) -> bytes:
        parts, position = [], self._begin
        for chunk in self._chunks:
            if position + len(chunk) > offset and position < offset + size:
                parts.append(chunk[max(0, offset - position) : offset + size - position])
            position += len(chunk)
        return b"".join(parts)

    def _restart(self) -> None:
        self._file = self._opener()
        self._chunks: deque[bytes] = deque()  # the window, from offset _begin to _end
        self._begin = self._end = 0
