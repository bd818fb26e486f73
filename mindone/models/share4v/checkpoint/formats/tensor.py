"""StoredTensor: a tensor that lies in a file and is read when it is asked for."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import CheckpointError

# What the formats' own dtype names are turned into -> NumPy's code for the bytes. NumPy has no bfloat16: its bits are
# read as integers and widened.
DTYPES = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": "u2",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint64": "u8",
    "uint32": "u4",
    "uint16": "u2",
    "uint8": "u1",
    "bool": "?",
}
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: what is known before its data is read.

    Attributes:
        name: the name that the file gives it.
        shape: its sizes.
        dtype: the stored dtype, one of DTYPES; "bfloat16" is read as float32, which holds it exactly.
        file: where it lies, for messages.
        read: gives the array, [*shape]; it may be a read-only view of the file.
        mapped: all bytes of the file, as `map_file` gives them, or a view of them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    read: Callable[[], np.ndarray] = field(repr=False, compare=False)
    mapped: np.ndarray = field(repr=False, compare=False)

    def release(self) -> None:
        """Give back the memory that pages of the file take since they were read; views of them stay good.

        The system keeps the pages as long as it has room, but no longer counts them as this process's memory.
        """
        owner: object = self.mapped
        while isinstance(owner, np.ndarray):
            owner = owner.base
        owner = owner.obj if isinstance(owner, memoryview) else owner
        if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            owner.madvise(mmap.MADV_DONTNEED)


def map_file(path: Path) -> np.ndarray:
    """Map a file's bytes, uint8 [size], without reading them.

    Raises:
        CheckpointError: the file is empty, or is a Git LFS pointer in the place of the real file.
    """
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: download it again")
    with path.open("rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    if data[: len(LFS_POINTER)].tobytes() == LFS_POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: run 'git lfs pull' in its directory")
    return data


def item_size(dtype: str) -> int:
    """Return the bytes of one stored element."""
    return np.dtype(DTYPES[dtype]).itemsize


def typed(raw: np.ndarray, dtype: str, byteorder: Literal["<", ">"] = "<") -> np.ndarray:
    """View bytes, uint8 [size], as stored elements, [size / item_size]."""
    return raw.view(np.dtype(DTYPES[dtype]).newbyteorder(byteorder))


def decoded(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Turn stored elements into NumPy's own dtype and byte order; bfloat16 becomes float32 exactly."""
    if dtype == "bfloat16":
        bits = stored.astype(np.uint32, order="C")
        bits <<= 16  # in place: a large tensor is held once, not twice
        return bits.view(np.float32)
    # Data may begin anywhere in a file, and MindSpore 2.7 refuses arrays that are not aligned.
    return np.require(stored, dtype=np.dtype(DTYPES[dtype]), requirements="A")
