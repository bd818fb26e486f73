"""Layers that GPTQ has rounded, on disk, so that a conversion that was killed resumes after the last of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 3  # of the files and of the method: increase it when a change of either would give other bits


def fingerprint(*parts: Any) -> str:
    """Return a short hash of what the result depends on: JSON values, bytes and arrays."""
    digest = hashlib.sha256(str(VERSION).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(str((part.dtype.str, part.shape)).encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


class FinishedLayers:
    """A directory of finished blocks and of the calibration sequences behind the last of them.

    A layer counts as finished when the file of its sequences has its final name, which it gets last.

    Args:
        directory: created with the first layer; it belongs to one conversion (see `fingerprint`).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def count(self) -> int:
        """The number of finished layers."""
        numbers = [int(path.stem.rpartition("-")[2]) for path in self.directory.glob("sequences-*.npy")]
        return max(numbers, default=-1) + 1

    def block(self, layer: int) -> np.ndarray:
        """Return the block of a finished layer, uint8."""
        return np.fromfile(self._block_path(layer), np.uint8)

    def sequences(self, count: int) -> list[np.ndarray]:
        """Return the outputs of the last finished layer: `count` sequences, float32 [T, H] each."""
        with self._sequences_path(self.count - 1).open("rb") as file:
            return [np.load(file, allow_pickle=False) for _ in range(count)]

    def add(self, layer: int, block: np.ndarray, sequences: Sequence[np.ndarray]) -> None:
        """Store a layer's block and outputs; the outputs of the layer before it are deleted."""
        self.directory.mkdir(parents=True, exist_ok=True)
        unfinished = self.directory / "unfinished"
        with unfinished.open("wb") as file:
            file.write(block.data)
        unfinished.replace(self._block_path(layer))
        with unfinished.open("wb") as file:
            for sequence in sequences:
                np.save(file, sequence)
        unfinished.replace(self._sequences_path(layer))
        self._sequences_path(layer - 1).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete everything, once the checkpoint is complete."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _block_path(self, layer: int) -> Path:
        return self.directory / f"block-{layer:05d}"

    def _sequences_path(self, layer: int) -> Path:
        return self.directory / f"sequences-{layer:05d}.npy"
