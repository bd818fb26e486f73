"""A safetensors file in which every tensor begins at a multiple of 64 bytes, so that kernels can use it where it lies.

The safetensors library reads such files; its own writer aligns to 8 bytes, and wants all tensors in memory at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..kernels.packing import ALIGNMENT, anonymous_memory
from .errors import CheckpointError
from .formats.safetensors_file import DTYPES
from .formats.tensor import item_size

# A dtype -> the format's name for it.
_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}


def write_aligned(sizes: Iterable[tuple[str, tuple[int, ...], str]], arrays: Iterable[np.ndarray], path: Path) -> None:
    """Write tensors one by one; only one is held.

    Format: https://github.com/huggingface/safetensors#format

    Args:
        sizes: (name, shape, dtype) of every tensor. A uint8 tensor's bytes must be a multiple of 64, or it be the last
            but for others that are no packed blocks.
        arrays: the tensors, in the same order.

    Raises:
        CheckpointError: a name comes twice, or a dtype cannot be written.
        OSError: the disk is full or not writable.
    """
    # Blocks first: their sizes are multiples of 64, so that each begins at one.
    header: dict[str, object] = {"__metadata__": {"format": "ms"}}
    offset = 0
    for name, shape, dtype in sizes:
        if name in header:
            raise CheckpointError(f"the weight {name} is given twice")
        if dtype not in _NAMES:
            raise CheckpointError(f"the weight {name} has dtype {dtype}, expected one of {', '.join(_NAMES)}")
        end = offset + int(np.prod(shape)) * item_size(dtype)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays:
            np.ascontiguousarray(array).tofile(file)


def ordered(pairs: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield packed blocks first, then the rest; arrays that are held already are not copied."""
    rest = []
    for name, array in pairs:
        if array.dtype == np.uint8:
            yield name, array
        else:
            rest.append((name, array))
    yield from rest


def aligned(block: np.ndarray) -> np.ndarray:
    """Return a block as it is if kernels can use it where it lies; another program's file may have it anywhere."""
    if block.ctypes.data % ALIGNMENT == 0:
        return block
    copied = anonymous_memory(block.size)
    copied[:] = block
    return copied
