"""Layers that GPTQ has rounded, on disk, so that a conversion that was killed resumes after the last of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..file_locks import is_locked, lock

VERSION = 6  # of the files and of the method: increase it when a change of either would give other bits
CURRENT = "current"  # the file that the layer in work changes
LOCK = "lock"


def fingerprint(*parts: Any) -> str:
    """Return a short hash of what the result depends on: JSON values, bytes and arrays."""
    digest = hashlib.sha256(str(VERSION).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(str((part.dtype.str, part.shape)).encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


class SequenceFile:
    """Sequences, float32 [T, H] each, one after the other in a file, so that only one is in memory.

    Args:
        path: the file, which exists.
        shapes: of the sequences.
    """

    def __init__(self, path: Path, shapes: Sequence[tuple[int, ...]]) -> None:
        self.path, self.shapes = path, tuple(shapes)
        self._starts = [0, *accumulate(4 * int(np.prod(shape)) for shape in shapes)]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int, /) -> np.ndarray:
        count = int(np.prod(self.shapes[index]))
        return np.fromfile(self.path, np.float32, count, offset=self._starts[index]).reshape(self.shapes[index])

    def __setitem__(self, index: int, value: np.ndarray, /) -> None:
        with self.path.open("r+b") as file:
            file.seek(self._starts[index])
            file.write(np.ascontiguousarray(value, np.float32).data)


class FinishedLayers:
    """A directory of finished blocks and of the calibration data behind the last of them.

    A layer counts as finished when the file of its outputs has its final name, which it gets last.

    Args:
        directory: it belongs to one conversion (see `fingerprint`).

    `begin` keeps other conversions out of the directory, until `close`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shapes: list[tuple[int, ...]] = []
        self._lock: IO[bytes] | None = None

    @property
    def count(self) -> int:
        """The number of finished layers."""
        return max((int(path.name.rpartition("-")[2]) for path in self.directory.glob("sequences-*")), default=0)

    def begin(self, sequences: Sequence[np.ndarray]) -> None:
        """Store what goes into the first layer, [T, H] each, unless layers are finished already.

        Raises:
            BlockingIOError: another conversion is at work in the directory; both would change the same sequences.
        """
        self._shapes = [sequence.shape for sequence in sequences]
        self.directory.mkdir(parents=True, exist_ok=True)
        self._take()
        if self.count:
            return
        with (self.directory / CURRENT).open("wb") as file:
            for sequence in sequences:
                file.write(np.ascontiguousarray(sequence, np.float32).data)
            _sync(file)
        (self.directory / CURRENT).replace(self._path("sequences", 0))

    def sequences(self) -> SequenceFile:
        """Return the inputs of the next layer, which it may change: they are a copy."""
        shutil.copyfile(self._path("sequences", self.count), self.directory / CURRENT)
        return SequenceFile(self.directory / CURRENT, self._shapes)

    def block(self, layer: int) -> np.ndarray:
        """Return the block of a finished layer, uint8."""
        return np.fromfile(self._path("block", layer), np.uint8)

    def add(self, layer: int, block: np.ndarray) -> None:
        """Store a layer's block; the sequences have become its outputs. Its inputs are deleted."""
        unfinished = self.directory / "unfinished"
        with unfinished.open("wb") as file:
            file.write(block.data)
            _sync(file)
        unfinished.replace(self._path("block", layer))
        with (self.directory / CURRENT).open("rb+") as file:
            _sync(file)
        (self.directory / CURRENT).replace(self._path("sequences", layer + 1))
        self._path("sequences", layer).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete everything, once the checkpoint is complete."""
        for path in self.directory.glob("*"):
            if path.name != LOCK:  # the last, so that others see that somebody is at work
                path.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let other conversions use the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take(self) -> None:
        self.close()
        file = (self.directory / LOCK).open("wb")
        try:
            lock(file)
        except BlockingIOError as error:
            file.close()
            raise BlockingIOError(
                f"{self.directory.parent}: the same checkpoint is being converted into it already: wait until that has "
                "finished, or end it"
            ) from error
        self._lock = file

    def _path(self, kind: str, number: int) -> Path:
        return self.directory / f"{kind}-{number:05d}"


class Abandoned(NamedTuple):
    """What a conversion that was interrupted left: its directory, how many layers are finished, and its bytes."""

    directory: Path
    layers: int
    size: int


def abandoned(directory: Path) -> list[Abandoned]:
    """Return what other conversions left beside a directory; those that are running, or end just now, left nothing."""
    kind = directory.name.rpartition("-")[0]
    found = []
    for path in sorted(directory.parent.glob(f"{kind}-*")):
        with suppress(OSError):  # it is deleted just now, or belongs to somebody else
            if path != directory and not _is_in_use(path):
                size = sum(file.stat().st_size for file in path.iterdir())
                found += [Abandoned(path, FinishedLayers(path).count, size)] if size else []
    return found


def _is_in_use(directory: Path) -> bool:
    try:
        with (directory / LOCK).open("rb") as file:
            return is_locked(file)
    except FileNotFoundError:
        return False


def _sync(file: IO[bytes]) -> None:
    """Write to the disk itself, so that a file never has its final name without its content."""
    file.flush()
    os.fsync(file.fileno())
