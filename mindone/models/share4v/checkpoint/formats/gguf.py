"""Reader of GGUF files (versions 2 and 3), llama.cpp's format: metadata and tensors, through a memory map.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Everything that a file states (counts, lengths,
dimensions, offsets, types) is checked against its size before it is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .gguf_types import TENSOR_TYPES, TensorType
from .tensor import StoredTensor, checked_layout, map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Metadata types by number: NumPy's code of plain numbers; then text and arrays.
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
TEXT, ARRAY = 8, 9
MAX_TENSORS = 100_000
MAX_ENTRIES = 10_000
MAX_NAME_BYTES = 65_535
MAX_TEXT_BYTES = 16 << 20  # a chat template is some kilobytes
MAX_TEXTS = 2**21  # in all arrays of a file; large vocabularies have 300,000 tokens and as many merges
MAX_ARRAY_BYTES = 2**26  # of an array of numbers, which is copied
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
MAX_PARTS = 10_000
SUFFIX = ".gguf"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_DECODED_AT_ONCE = 1 << 20  # values; decoding needs several times the memory of its result


class _Damaged(Exception):
    pass


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file, still in the file.

    Attributes:
        name: as the file has it.
        shape: sizes in the order of NumPy and torch, the reverse of the file's.
        type: its type; a row, the last dimension, is a whole number of the type's blocks.
        blocks: its bytes, uint8 [blocks, bytes of one], a view of the mapped file.
        file: the file, which is one of several if the model is split.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    blocks: np.ndarray
    file: Path

    def decoded(self) -> np.ndarray:
        """Return the values, float32 [*shape]."""
        values = np.empty((len(self.blocks), self.type.values), np.float32)
        step = _DECODED_AT_ONCE // self.type.values
        for start in range(0, len(values), step):
            values[start : start + step] = self.type.decode(self.blocks[start : start + step])
        return values.reshape(self.shape)


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file, or the files of a model that was split.

    Attributes:
        path: where it is; the first of several.
        metadata: its keys and values: numbers, text, and arrays as NumPy arrays or lists of text.
        tensors: by name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    def stored_tensors(self) -> list[StoredTensor]:
        """List the tensors as every format's reader does; they are read as float32."""
        return [
            StoredTensor(tensor.name, tensor.shape, "float32", tensor.file, tensor.decoded, tensor.blocks)
            for tensor in self.tensors.values()
        ]


class _Cursor:
    """Reads values one after another, never beyond the end."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.position = data, 0
        self.texts_left = MAX_TEXTS

    def take(self, size: int) -> np.ndarray:
        end = self.position + size
        if end > len(self.data):
            raise _Damaged(f"it ends {end - len(self.data)} bytes too early")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, code: str) -> Any:
        dtype = np.dtype(code)
        return self.take(dtype.itemsize).view(dtype)[0].item()

    def count(self, what: str, limit: int) -> int:
        count = self.number("<u8")
        if count > limit:
            raise _Damaged(f"{what} is {count}, expected at most {limit}")
        return count

    def text(self, what: str, limit: int) -> str:
        return self.take(self.count(f"the length of {what}", limit)).tobytes().decode("utf-8", "replace")

    def value(self, key: str) -> Any:
        kind = self.number("<u4")
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == TEXT:
            return self.text(key, MAX_TEXT_BYTES)
        if kind == ARRAY:
            return self.array(key)
        raise _Damaged(f"{key} has the unknown type {kind}")

    def array(self, key: str) -> Any:
        kind = self.number("<u4")
        left = len(self.data) - self.position
        if kind in NUMBERS:
            dtype = np.dtype(NUMBERS[kind])
            count = self.count(f"the length of {key}", min(left, MAX_ARRAY_BYTES) // dtype.itemsize)
            return self.take(count * dtype.itemsize).view(dtype).copy()
        if kind == TEXT:
            count = self.count(f"the length of {key}", min(left // 8, self.texts_left))
            self.texts_left -= count
            return [self.text(key, MAX_TEXT_BYTES) for _ in range(count)]
        raise _Damaged(f"{key} is an array of the type {kind}, expected numbers or text")


def open_gguf(path: Path) -> GGUFFile:
    """Read a GGUF file's metadata and list its tensors; their data stays in the file until it is decoded.

    Raises:
        CheckpointError: the file is truncated, damaged, of another version, or holds a type that is not supported.
    """
    data = map_file(path)
    cursor = _Cursor(data)
    try:
        return _read(path, data, cursor)
    except _Damaged as error:
        raise CheckpointError(
            f"{path} is damaged or not a GGUF file (at byte {cursor.position}: {error}): download it again"
        ) from None


def _read(path: Path, data: np.ndarray, cursor: _Cursor) -> GGUFFile:
    if cursor.take(4).tobytes() != MAGIC:
        raise _Damaged("it does not start with 'GGUF'")
    version = cursor.number("<u4")
    if version not in VERSIONS:
        raise CheckpointError(
            f"{path} has GGUF version {version}, expected one of {VERSIONS}; a big-endian file is not supported"
        )
    tensor_count = cursor.count("the number of tensors", MAX_TENSORS)
    entry_count = cursor.count("the number of metadata entries", MAX_ENTRIES)
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.text("a key", MAX_NAME_BYTES)
        if key in metadata:
            raise _Damaged(f"the key {key!r} appears twice")
        metadata[key] = cursor.value(key)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment % 8:
        raise _Damaged(f"general.alignment is {alignment!r}, expected a multiple of 8")
    infos = [_tensor_info(cursor, path) for _ in range(tensor_count)]
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    end_of_last = start
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
        if name in tensors:
            raise _Damaged(f"the tensor {name!r} appears twice")
        begin = start + offset
        size = _blocks_of(shape, kind) * kind.bytes
        if offset % alignment or begin < end_of_last or begin + size > len(data):
            raise _Damaged(
                f"the tensor {name!r} has {size} bytes at offset {offset}, which overlaps or leaves the file"
            )
        end_of_last = begin + size
        blocks = data[begin : begin + size].reshape(-1, kind.bytes)
        tensors[name] = GGUFTensor(name, shape, kind, blocks, path)
    return GGUFFile(path, metadata, tensors)


def open_gguf_model(path: Path) -> GGUFFile:
    """Read a GGUF file and, if it is one of several parts (`-00001-of-0000N.gguf`), the others beside it.

    Raises:
        CheckpointError: as `open_gguf`; or a part is missing, or the parts contradict each other.
    """
    named = _PART.fullmatch(path.name)
    first = open_gguf(path if named is None else part_path(path, 1))
    count = first.metadata.get("split.count", 1)
    if type(count) is not int or not 0 < count <= MAX_PARTS:
        raise CheckpointError(f"{first.path} states split.count {count!r:.80}, expected 1 to {MAX_PARTS}")
    if named is None and count > 1:
        raise CheckpointError(
            f"{path} is one of {count} parts, but its name does not say which: give it its name again, such as "
            f"{path.stem}-00001-of-{count:05d}.gguf, with the other parts beside it"
        )
    if named is not None and int(named["count"]) != count:
        raise CheckpointError(f"{first.path} states split.count {count}, but its name says {int(named['count'])} parts")
    tensors = dict(first.tensors)
    for number in range(2, count + 1):
        part = open_gguf(part_path(path, number))
        twice = sorted(tensors.keys() & part.tensors.keys())
        if part.metadata.get("split.no") != number - 1 or part.metadata.get("split.count") != count or twice:
            raise CheckpointError(
                f"{part.path} is not part {number} of {count} of {first.path}"
                + (f": both have the tensor {twice[0]!r:.200}" if twice else "")
            )
        tensors.update(part.tensors)
    stated = first.metadata.get("split.tensors.count", len(tensors))
    if stated != len(tensors):
        raise CheckpointError(f"{first.path} and its parts have {len(tensors)} tensors, expected {stated!r:.80}")
    return GGUFFile(first.path, first.metadata, tensors)


def part_path(path: Path, number: int) -> Path:
    """Return the path of another part of a split model, given that of one.

    Raises:
        CheckpointError: the part is missing.

    Example:
        >>> from pathlib import Path
        >>> from mindone.models.share4v.checkpoint.formats.gguf import part_path
        >>> part_path(Path("a-00002-of-00003.gguf"), 1)
        Traceback (most recent call last):
        ...
        mindone.models.share4v.checkpoint.errors.CheckpointError: a-00001-of-00003.gguf is missing: ...
    """
    part = path.with_name(_PART.sub(rf"\g<stem>-{number:05d}-of-\g<count>{SUFFIX}", path.name))
    if not part.is_file():
        raise CheckpointError(f"{part} is missing: all parts of a model must be in one directory; download it too")
    return part


def is_later_part(path: Path) -> bool:
    """Return whether a file is one of several parts and not the first."""
    named = _PART.fullmatch(path.name)
    return named is not None and int(named["number"]) != 1


def _blocks_of(shape: tuple[int, ...], kind: TensorType) -> int:
    count = 1
    for size in shape:
        count *= size
    return count // kind.values


def _tensor_info(cursor: _Cursor, path: Path) -> tuple[str, tuple[int, ...], TensorType, int]:
    """Read one tensor's name, shape, type and offset."""
    name = cursor.text("a tensor's name", MAX_NAME_BYTES)
    dimensions = cursor.number("<u4")
    if dimensions > MAX_DIMENSIONS:
        raise _Damaged(f"the tensor {name!r:.200} has {dimensions} dimensions, expected at most {MAX_DIMENSIONS}")
    sizes = tuple(cursor.number("<u8") for _ in range(dimensions))[::-1]
    number = cursor.number("<u4")
    offset = cursor.number("<u8")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        known = ", ".join(known.name for known in TENSOR_TYPES.values())
        raise CheckpointError(
            f"{name} in {path} has GGUF type {number}, which is not supported; expected one of {known}"
        )
    count = 1
    for size in sizes:
        count *= size
    layout = checked_layout(f"{name} in {path}", sizes, count)
    if (sizes[-1] if sizes else 1) % kind.values:
        raise _Damaged(
            f"the tensor {name!r:.200} has rows of {sizes[-1] if sizes else 1}, not a multiple of {kind.values}"
        )
    return name, layout.shape, kind, offset
