"""Writer of safetensors files whose packed blocks start at multiples of 64 bytes, so that kernels use them in place.

The safetensors library reads such files; its own writer aligns to 8 bytes and needs all tensors in memory at once.
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
    """Write tensors one by one; only one is in memory at a time.

    Format: https://github.com/huggingface/safetensors#format

    Args:
        sizes: (name, shape, dtype) of every tensor, packed blocks (uint8) first: their sizes are multiples of 64, so
            each starts at one.
        arrays: the tensors, in the same order.
        path: the file to write.

    Raises:
        CheckpointError: a name is given twice, or a dtype is not supported.
        OSError: the disk is full or not writable.
    """
    header: dict[str, object] = {"__metadata__": {"format": "ms"}}
    offset = 0
    for name, shape, dtype in sizes:
        if name in header:
            raise CheckpointError(f"the weight {name} is given twice")
        if dtype not in _NAMES:
            raise CheckpointError(
                f"the weight {name} has the unsupported dtype {dtype}: use one of {', '.join(_NAMES)}"
            )
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
            del array  # before the next one is made


def ordered(pairs: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield packed blocks first, then the other tensors; arrays are not copied."""
    rest = []
    for name, array in pairs:
        if array.dtype == np.uint8:
            yield name, array
        else:
            rest.append((name, array))
    yield from rest


def aligned(block: np.ndarray) -> np.ndarray:
    """Return a block that is aligned for the kernels; it is copied only if another program stored it unaligned."""
    if block.ctypes.data % ALIGNMENT == 0:
        return block
    copied = anonymous_memory(block.size)
    copied[:] = block
    return copied
