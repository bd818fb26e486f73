"""Files that appear only when they are whole, and lines counted without being read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

PARTIAL_SUFFIX = ".partial"  # what a file is called until it is whole
GROUP_BYTES = 4 * 2**20
_CHUNK = 2**20


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file that takes its place when all of it is on the disk; after an error the old one stays.

    Raises:
        OSError: the disk is full, or another reason why it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    publish(partial, path)


def partial_path(path: Path) -> Path:
    """Return what a file is called until it is whole."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def publish(partial: Path, path: Path) -> None:
    """Give a whole file its name, so that it keeps it after a power failure too."""
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk, where the system can."""
    if os.name != "posix":
        return
    place = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot, and need not
            os.fsync(place)
    finally:
        os.close(place)


def sync_file(path: Path) -> None:
    """Bring a file that was written and closed to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class AppendOnlyFile:
    """A file that grows by groups; a crash damages no more than the last one, which has about GROUP_BYTES at most.

    Args:
        path: made if there is nothing.

    Raises:
        OSError: another process writes it, or it cannot be written at all.

    Attributes:
        size: bytes on the disk.
    """

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        self._file = path.open("ab+", buffering=0)
        try:
            self._take(path)
        except BaseException:
            self._file.close()
            raise
        self.size = os.fstat(self._file.fileno()).st_size
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        if is_new:
            sync_directory(path.parent)

    @property
    def waiting(self) -> int:
        """How many pieces are not on the disk yet."""
        return len(self._waiting)

    def append(self, piece: bytes) -> None:
        """Add bytes to the group, after bringing the group to the disk where it would be too large.

        Raises:
            OSError: as `flush`; the piece was not added then.
        """
        if self._waiting_bytes + len(piece) > GROUP_BYTES:
            self.flush()
        self._waiting.append(piece)
        self._waiting_bytes += len(piece)

    def flush(self) -> None:
        """Bring the group to the disk.

        Raises:
            OSError: the disk is full, say; the file is as it was before the group, which can be tried again.
        """
        if not self._waiting:
            return
        data = memoryview(b"".join(self._waiting))
        if os.fstat(self._file.fileno()).st_size > self.size:  # what an earlier group left, and could not take back
            self._file.truncate(self.size)
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):
                self._file.truncate(self.size)
            raise
        self.size += sum(map(len, self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0

    def tail(self, length: int) -> bytes:
        """Return the last bytes on the disk."""
        self._file.seek(max(0, self.size - length))
        return self._file.read()

    def cut(self, size: int) -> None:
        """Leave the first `size` bytes."""
        if size < self.size:
            self._file.truncate(size)
            os.fsync(self._file.fileno())
            self.size = size

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        self._file.close()

    def _take(self, path: Path) -> None:
        place = os.fstat(self._file.fileno())
        earlier = _OPEN.get((place.st_dev, place.st_ino))
        if earlier is not None:
            earlier.close()
        _lock(self._file, path)
        _OPEN[place.st_dev, place.st_ino] = self


# What this process writes: a notebook keeps the traceback of a job that broke off, and with it the job's files open.
# The same job begun again takes them over.
_OPEN: WeakValueDictionary[tuple[int, int], AppendOnlyFile] = WeakValueDictionary()


def _lock(file: BinaryIO, path: Path) -> None:
    """Let no other process append to a file while it is open, where the system and the disk know locks."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"{path}: another process is writing this file: wait until it is done, or name another output"
        ) from None
    except OSError:  # some network file systems have no locks
        return


def count_lines(path: Path) -> int:
    """Return how many line ends a file has."""
    count = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            count += chunk.count(b"\n")
    return count


def offset_of_line(file: BinaryIO, line: int) -> int:
    """Return where a line begins, counted from 0, or where the file ends if it has too few."""
    file.seek(0)
    offset, left = 0, line
    while left and (chunk := file.read(_CHUNK)):
        found = chunk.count(b"\n")
        if found >= left:
            place = -1
            for _ in range(left):
                place = chunk.find(b"\n", place + 1)
            return offset + place + 1
        left -= found
        offset += len(chunk)
    return offset


def lines_from(path: Path, start: int = 0) -> Iterator[bytes]:
    """Yield a file's lines from number `start` on, line ends included."""
    with path.open("rb") as file:
        file.seek(offset_of_line(file, start))
        yield from file
