"""Mapped files: memory that is a view of a file, and how to notice that the file was changed meanwhile.

A mapping is not a copy. Writing into the file changes the weights of every process that maps it, and a read beyond the
end of a file that was truncated ends the process with SIGBUS. Only reading the whole file into memory would prevent
both; instead, a file is checked when its memory is about to be used.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CheckpointError

_ADVICE = "load the model again; to change a checkpoint, write another directory instead of changing files in use"


class FileChangedError(CheckpointError):
    """A file was changed, replaced or deleted after it was mapped; the model must be loaded again."""


@dataclass(frozen=True)
class FileVersion:
    """The state of a file when it was mapped.

    Attributes:
        path: absolute path of the file.
        identity: device, inode, size in bytes, and time of the last change in nanoseconds.
    """

    path: Path
    identity: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> FileVersion:
        return cls(path.absolute(), (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))

    def check(self) -> None:
        """Check that the path still leads to the same file, and that it was not changed; takes microseconds.

        Raises:
            FileChangedError: it was changed, replaced or deleted.
        """
        try:
            now = FileVersion.of(self.path, self.path.stat())
        except OSError as error:
            raise FileChangedError(f"{self.path}, from which weights are mapped, cannot be read: {_ADVICE}") from error
        if now == self:
            return
        if now.identity[:2] != self.identity[:2]:
            happened = "was replaced by another file"
        elif now.identity[2] != self.identity[2]:
            happened = f"has {now.identity[2]} bytes, and had {self.identity[2]}"
        else:
            happened = "was written to"
        raise FileChangedError(f"{self.path} {happened} after the model was loaded: {_ADVICE}")


class MappedFile(mmap.mmap):
    """A read-only mapping of a file that knows the state of the file when it was mapped."""

    version: FileVersion


def map_path(path: Path) -> np.ndarray:
    """Map a file that is not empty, uint8 [size]."""
    with path.open("rb") as file:
        mapping = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapping.version = FileVersion.of(path, os.fstat(file.fileno()))
    return np.frombuffer(mapping, np.uint8)


def mapped_versions(arrays: Iterable[np.ndarray]) -> frozenset[FileVersion]:
    """Return the versions of the files that arrays are views of; copies have none."""
    found = set()
    for array in arrays:
        owner: object = array
        while owner is not None and not isinstance(owner, MappedFile):  # views of views; `as_strided` makes no ndarray
            owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
        if owner is not None:
            found.add(owner.version)
    return frozenset(found)
