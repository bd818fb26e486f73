"""Reader of .safetensors files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .tensor import Layout, StoredTensor, arranged, checked_layout, decoded, item_size, map_file, typed

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def open_safetensors(path: Path) -> list[StoredTensor]:
    """List the tensors of a .safetensors file; their data stays in the file until read.

    Format: https://github.com/huggingface/safetensors#format

    Raises:
        CheckpointError: the file is truncated or damaged, or a dtype is not one of DTYPES.
    """
    data = map_file(path)
    try:
        # The library checks the header, the offsets and the file's size; it cannot hand bfloat16 to NumPy.
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}): download it again") from error
    length = int(data[:8].view("<u8")[0])
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return [_stored(name, entry, body, path) for name, entry in header.items()]


def _stored(name: str, entry: dict[str, Any], body: np.ndarray, path: Path) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{name} in {path} has dtype {entry['dtype']}, which is not supported; expected one of {', '.join(DTYPES)}"
        )
    dtype = DTYPES[entry["dtype"]]
    start, stop = entry["data_offsets"]
    size = item_size(dtype)
    if (stop - start) % size:
        raise CheckpointError(
            f"{name} in {path} has {stop - start} bytes, which is no whole number of {dtype} elements"
        )
    layout = checked_layout(f"{name} in {path}", entry["shape"], (stop - start) // size)
    return StoredTensor(name, layout.shape, dtype, path, partial(_read, body, start, stop, dtype, layout), body)


def _read(body: np.ndarray, start: int, stop: int, dtype: str, layout: Layout) -> np.ndarray:
    return decoded(arranged(typed(body[start:stop], dtype), layout), dtype)
