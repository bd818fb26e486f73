"""Reader of MindSpore's .ckpt files: their protocol-buffer stream is walked in place, so that no file is held whole.

mindspore.load_checkpoint reads the same bytes, but holds the file and its parsed copy in memory at once: a 7B model
in float32 would take 54 GB before the first weight reaches the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from .tensor import MAX_DIMENSIONS, Layout, StoredTensor, arranged, checked_layout, decoded, item_size, map_file, typed

DTYPES = {
    "Float64": "float64",
    "Float32": "float32",
    "Float16": "float16",
    "BFloat16": "bfloat16",
    "Int64": "int64",
    "Int32": "int32",
    "Int16": "int16",
    "Int8": "int8",
    "UInt64": "uint64",
    "UInt32": "uint32",
    "UInt16": "uint16",
    "UInt8": "uint8",
    "Bool": "bool",
}
# Protocol buffers' wire types, and the field numbers of MindSpore's checkpoint.proto.
VARINT, BYTES = 0, 2
VALUE = 1
TAG, TENSOR = 1, 2
DIMS, TENSOR_TYPE, TENSOR_CONTENT = 1, 2, 3
CRC_MARK, CRC_SIZE = b"crc_num", 17
MAX_NAME_BYTES = 4096


class _Damaged(Exception):
    pass


@dataclass
class _Entry:
    dims: tuple[int, ...]
    dtype: str
    chunks: list[tuple[int, int]] = field(default_factory=list)


def open_ckpt(path: Path) -> list[StoredTensor]:
    """List the tensors of a .ckpt file; their data stays in the file until read.

    Raises:
        CheckpointError: the file is truncated, damaged, encrypted, or holds something else than plain tensors.
    """
    data = map_file(path)
    end = len(data)
    if data[-CRC_SIZE : -CRC_SIZE + len(CRC_MARK)].tobytes() == CRC_MARK:
        end -= CRC_SIZE
    entries: dict[str, _Entry] = {}
    try:
        for number, span in _fields(data, 0, end):
            if number != VALUE:
                raise _Damaged(f"unknown field {number}")
            _add(data, *_byte_span(span, "an entry"), entries)
    except (_Damaged, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is truncated, encrypted or no MindSpore checkpoint ({error}): download it again, or save it "
            "without encryption"
        ) from None
    return [_stored(name, entry, data, path) for name, entry in entries.items()]


def _varint(data: np.ndarray, position: int, end: int) -> tuple[int, int]:
    """Return the number at `position` and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise _Damaged("it ends inside a number")
        byte = int(data[position])
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Damaged("a number is too long")


def _fields(data: np.ndarray, position: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield (field number, (start, stop)) for byte fields and (field number, (value, -1)) for numbers."""
    while position < end:
        key, position = _varint(data, position, end)
        value, position = _varint(data, position, end)
        if key & 7 == VARINT:
            yield key >> 3, (value, -1)
        elif key & 7 == BYTES:
            if position + value > end:
                raise _Damaged(f"it ends {position + value - end} bytes inside a field")
            yield key >> 3, (position, position + value)
            position += value
        else:
            raise _Damaged(f"unknown wire type {key & 7}")


def _byte_span(span: tuple[int, int], what: str) -> tuple[int, int]:
    """Return where a byte field is; a number in its place is damage, since it would be read as a position."""
    if span[1] < 0:
        raise _Damaged(f"{what} is a number, expected bytes")
    return span


def _text(data: np.ndarray, span: tuple[int, int], what: str) -> str:
    start, stop = _byte_span(span, what)
    if stop - start > MAX_NAME_BYTES:
        raise _Damaged(f"{what} has {stop - start} bytes, expected at most {MAX_NAME_BYTES}")
    return data[start:stop].tobytes().decode("utf-8")


def _add(data: np.ndarray, start: int, stop: int, entries: dict[str, _Entry]) -> None:
    """Read one `Value`. A tensor above 512 MB is written as several with one name, one after the other."""
    fields = list(islice(_fields(data, start, stop), 3))
    parts = dict(fields)
    if len(fields) != 2 or set(parts) != {TAG, TENSOR}:
        raise _Damaged(f"an entry has fields {[number for number, _ in fields]}, expected a name and a tensor")
    name = _text(data, parts[TAG], "a name")
    dims: list[int] = []
    dtype, chunk = "", (0, 0)
    for number, span in _fields(data, *_byte_span(parts[TENSOR], f"the tensor of {name}")):
        if number == DIMS:
            dims.extend(_dims(data, *span))
            if len(dims) > MAX_DIMENSIONS:
                raise _Damaged(f"the tensor of {name} has more than {MAX_DIMENSIONS} dimensions")
        elif number == TENSOR_TYPE:
            dtype = _text(data, span, f"the type of {name}")
        elif number == TENSOR_CONTENT:
            chunk = _byte_span(span, f"the content of {name}")
        else:
            raise _Damaged(f"the tensor of {name} has an unknown field {number}")
    shape = () if dims == [0] else tuple(dims)  # MindSpore writes a scalar's shape as [0]
    known = entries.get(name)
    if known is None:
        known = entries[name] = _Entry(shape, dtype)
    elif next(reversed(entries)) != name or (known.dims, known.dtype) != (shape, dtype):
        raise _Damaged(f"{name} is there twice")
    known.chunks.append(chunk)


def _dims(data: np.ndarray, start: int, stop: int) -> list[int]:
    """Read one size, or a packed run of them."""
    if stop == -1:
        return [start]
    sizes: list[int] = []
    while start < stop and len(sizes) <= MAX_DIMENSIONS:
        size, start = _varint(data, start, stop)
        sizes.append(size)
    return sizes


def _stored(name: str, entry: _Entry, data: np.ndarray, path: Path) -> StoredTensor:
    if entry.dtype not in DTYPES:
        raise CheckpointError(
            f"{name} in {path} has type {entry.dtype!r}, which is not supported; expected one of {', '.join(DTYPES)}"
        )
    dtype = DTYPES[entry.dtype]
    size = sum(stop - start for start, stop in entry.chunks)
    if size % item_size(dtype):
        raise CheckpointError(f"{name} in {path} has {size} bytes, not a whole number of {dtype} elements")
    layout = checked_layout(f"{name} in {path}", entry.dims, size // item_size(dtype))
    read = partial(_read, data, tuple(entry.chunks), dtype, layout)
    return StoredTensor(name, layout.shape, dtype, path, read, data)


def _read(data: np.ndarray, chunks: tuple[tuple[int, int], ...], dtype: str, layout: Layout) -> np.ndarray:
    parts = [data[start:stop] for start, stop in chunks]
    raw = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return decoded(arranged(typed(raw, dtype), layout), dtype)
