"""Bytes of an archive by their offset: at once where it is not compressed, in order where it is."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, BinaryIO, Protocol

WINDOW_BYTES = 64 * 2**20
_CHUNK = 2**18
# How a file begins -> what opens it.
COMPRESSIONS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


class Archive(Protocol):
    """A file whose bytes are known by their offset; any thread may read."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes there are, fewer than asked at the end.

        Raises:
            OSError, EOFError, lzma.LZMAError, zlib.error: it cannot be read.
        """


def open_archive(path: str) -> Archive:
    """Open a file for reading by offset; compression is known by how the file begins."""
    with open(path, "rb") as file:
        head = file.read(6)
    opener = next((opener for mark, opener in COMPRESSIONS.items() if head.startswith(mark)), None)
    return PlainArchive(path) if opener is None else CompressedArchive(partial(opener, path, "rb"))


class PlainArchive:
    """A file that is not compressed."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed with the last thread that reads
        self._lock = Lock()

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes at an offset."""
        if not hasattr(os, "pread"):
            with self._lock:
                self._file.seek(offset)
                return self._file.read(size)
        data = b""
        while len(data) < size and (piece := os.pread(self._file.fileno(), size - len(data), offset + len(data))):
            data = data + piece if data else piece
        return data


class CompressedArchive:
    """A compressed file, which can only be read from its beginning on.

    The last WINDOW_BYTES are kept, so that threads may ask out of order; what lies before them costs a new beginning.
    """

    def __init__(self, opener: Callable[[], BinaryIO]) -> None:
        self._opener, self._lock = opener, Lock()
        self._restart()

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes at an offset of what was compressed."""
        with self._lock:
            if offset < self._begin:
                self._restart()
            while self._end < offset + size:
                piece = self._file.read(_CHUNK)
                if not piece:
                    break
                self._pieces.append(piece)
                self._end += len(piece)
                while self._end - self._begin > WINDOW_BYTES and self._begin + len(self._pieces[0]) <= offset:
                    self._begin += len(self._pieces.popleft())
            return self._cut(offset, size)

    def _cut(self, offset: int, size: int) -> bytes:
        parts, place = [], self._begin
        for piece in self._pieces:
            if place + len(piece) > offset and place < offset + size:
                parts.append(piece[max(0, offset - place) : offset + size - place])
            place += len(piece)
        return b"".join(parts)

    def _restart(self) -> None:
        self._file = self._opener()
        self._pieces: deque[bytes] = deque()
        self._begin = self._end = 0
