"""Rows of bytes in a temporary file, read by number: for what is too large for memory and seldom read."""

from __future__ import annotations

import os
import tempfile
from array import array

_BUFFER_BYTES = 2**20


class DiskRows:
    """An append-only list of bytes in a temporary file, which is deleted when it is closed; 8 bytes a row in memory.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; every method may raise it.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.audit.disk_rows import DiskRows
        >>> rows = DiskRows()
        >>> rows.append(b"first"), rows.append(b"")
        (0, 1)
        >>> rows[0], rows[1], len(rows)
        (b'first', b'', 2)
        >>> rows.close()
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="share4v-")  # noqa: SIM115  closed by `close`
        self._ends = array("Q")
        self._pending = bytearray()
        self._written = 0

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        if not 0 <= number < len(self._ends):
            raise IndexError(number)
        start, end = self._ends[number - 1] if number else 0, self._ends[number]
        if end > self._written:
            self._write()
        return os.pread(self._file.fileno(), end - start, start)

    def append(self, row: bytes) -> int:
        """Add a row and return its number."""
        self._pending += row
        self._ends.append(self._written + len(self._pending))
        if len(self._pending) >= _BUFFER_BYTES:
            self._write()
        return len(self._ends) - 1

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def _write(self) -> None:
        data = memoryview(bytes(self._pending))
        while data:
            data = data[os.write(self._file.fileno(), data) :]
        self._written += len(self._pending)
        self._pending.clear()
