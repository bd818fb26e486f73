"""StoredTensor: a tensor that lies in a file and is read when it is asked for."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..errors import CheckpointError
from .mapped_file import map_path

if TYPE_CHECKING:
    from ...kernels.packing import RoundedGroups

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
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 48  # far above any checkpoint; far below what overflows a 64-bit number of bytes


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
        groups: type of the kernels' matrices -> gives integers and scales for it that have exactly the tensor's values;
            None in place of them if they do not fit. Empty unless the file stores such integers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    read: Callable[[], np.ndarray] = field(repr=False, compare=False)
    mapped: np.ndarray = field(repr=False, compare=False)
    groups: Mapping[str, Callable[[], RoundedGroups | None]] = field(default_factory=dict, repr=False, compare=False)

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
    data = map_path(path)
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


class Layout(NamedTuple):
    """Where a tensor's elements are within a flat array of `elements` of them. Made only by `checked_layout`.

    Attributes:
        shape: sizes.
        strides: steps between neighbours of each dimension, in elements.
        offset: index of the first element.
        elements: how many elements the flat array has.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    elements: int


def checked_layout(where: str, shape: Any, elements: int, strides: Any = None, offset: Any = 0) -> Layout:
    """Check every number that a file gives about one tensor. The only way to a Layout, for every format's reader.

    Args:
        where: the tensor and its file, for messages.
        shape: sizes, as the file has them: any value.
        elements: how many elements the file holds for it.
        strides: steps in elements, as the file has them; None if the elements are contiguous and there are no others.
        offset: index of the first element, as the file has it.

    Raises:
        CheckpointError: a number is not an integer of at least 0, there are too many dimensions or elements, or an
            element lies outside the `elements` that are stored.

    Example:
        >>> from mindone.models.share4v.checkpoint.formats.tensor import checked_layout
        >>> checked_layout("x in a.bin", (2, 3), elements=6).strides
        (3, 1)
    """
    sizes = _checked_numbers(where, "shape", shape)
    count = 1
    for size in sizes:
        count *= max(size, 1)  # a size of 0 must not hide a size that no computation can hold
    if count > MAX_ELEMENTS:
        raise CheckpointError(f"{where} has the shape {sizes}: more than {MAX_ELEMENTS} elements")
    is_empty = 0 in sizes
    contiguous = _contiguous_strides(sizes)
    if strides is None:
        if (0 if is_empty else count) != elements:
            raise CheckpointError(f"{where} has {elements} elements, which does not fit the shape {sizes}")
        return Layout(sizes, contiguous, 0, elements)
    steps = _checked_numbers(where, "strides", strides)
    (start,) = _checked_numbers(where, "offset", (offset,))
    if len(steps) != len(sizes):
        raise CheckpointError(f"{where} has {len(sizes)} sizes and {len(steps)} strides")
    if is_empty:
        return Layout(sizes, contiguous, 0, elements)
    last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if last >= elements:
        raise CheckpointError(f"{where} reaches element {last} of a storage of {elements}")
    # The stride of a dimension of size 1 is never used, so the file's value, which nothing bounds, is not kept.
    steps = tuple(step if size > 1 else 0 for size, step in zip(sizes, steps, strict=True))
    return Layout(sizes, steps, start, elements)


def _checked_numbers(where: str, what: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        count = f"{len(values)} dimensions" if isinstance(values, (tuple, list)) else f"a {type(values).__name__}"
        raise CheckpointError(f"{where}: {what} has {count}, expected at most {MAX_DIMENSIONS} integers")
    wrong = [value for value in values if type(value) is not int or not 0 <= value <= MAX_ELEMENTS]
    if wrong:
        shown = wrong[0] if type(wrong[0]) is int else type(wrong[0]).__name__
        raise CheckpointError(f"{where}: {what} has {shown}, expected integers from 0 to {MAX_ELEMENTS}")
    return tuple(values)


def _contiguous_strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def arranged(flat: np.ndarray, layout: Layout) -> np.ndarray:
    """View flat elements [elements] in a checked layout, [*shape], read-only. The only caller of `as_strided`."""
    if len(flat) != layout.elements:
        raise CheckpointError(f"expected {layout.elements} stored elements, got {len(flat)}")
    strides = tuple(step * flat.itemsize for step in layout.strides)
    return as_strided(flat[layout.offset :], layout.shape, strides, writeable=False)
