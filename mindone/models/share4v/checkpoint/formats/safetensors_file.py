"""Reader of .safetensors files."""

from __future__ import annotations

import json
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .tensor import StoredTensor, decoded, item_size, map_file, typed

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
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if stop - start != prod(shape) * item_size(dtype):
        raise CheckpointError(f"{name} in {path} has {stop - start} bytes, which is not what shape {shape} takes")
    return StoredTensor(name, shape, dtype, path, partial(_read, body, start, stop, dtype, shape), body)


def _read(body: np.ndarray, start: int, stop: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return decoded(typed(body[start:stop], dtype), dtype).reshape(shape)
