"""Blocks of packed weights: what one operator works with, in the memory layout that csrc/format.h describes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from .library import library

LANES, GROUP, HEADER_BYTES, ALIGNMENT = 16, 32, 1024, 64
BLOCK_MAGIC = b"sh4vblk1"

_NORM = np.dtype([("kind", "<i4"), ("eps", "<f4"), ("size", "<i8"), ("weight", "<i8"), ("bias", "<i8")])
_MATRIX = np.dtype(
    [("type", "<i4"), ("unused", "<i4")] + [(name, "<i8") for name in ("rows", "columns", "data", "scales", "bias")]
)
_HEADER = np.dtype(
    [("magic", "S8"), ("bytes", "<i8")]
    + [(name, "<i4") for name in ("activation", "heads", "kv_heads", "head_dim", "rotary", "cache_layer")]
    + [("norms", _NORM, 2), ("matrices", _MATRIX, 4)]
)

TYPES = {"float32": 0, "float16": 1, "int8": 2, "int4": 3}
# What `fill` takes, as NumPy's dtype. A bfloat16 weight comes as its bits, uint16.
SOURCE_TYPES = {"float32": 0, "float16": 1, "uint16": 4}
ITEM_BYTES = {"float32": 4, "float16": 2}
GROUP_BYTES = {"int8": 512, "int4": 256}
NORMS = {"rms": 1, "layer": 2}
ACTIVATIONS = {None: 0, "gelu": 1, "quick_gelu": 2, "gated_silu": 3}


@dataclass(frozen=True)
class MatrixSpec:
    """A weight matrix [rows, columns], stored as `dtype` (one of TYPES), with a float32 bias or none."""

    rows: int
    columns: int
    dtype: str
    bias: bool = False


@dataclass(frozen=True)
class NormSpec:
    """A norm over `size` values: kind "rms" or "layer" (which may have a bias)."""

    kind: str
    size: int
    eps: float
    bias: bool = False


@dataclass(frozen=True)
class BlockSpec:
    """What a block holds. A table, whose rows are gathered, is not in panels and takes float32 and float16 alone."""

    matrices: tuple[MatrixSpec, ...]
    norms: tuple[NormSpec, ...] = ()
    activation: str | None = None
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    is_rotary: bool = False
    cache_layer: int = 0
    is_table: bool = False


def _pieces(spec: BlockSpec) -> Iterator[tuple[str, int, str, int]]:
    """Yield (kind, number, field, bytes) of each piece of a block in the order they lie in."""
    for number, norm in enumerate(spec.norms):
        yield "norms", number, "weight", norm.size * 4
        yield "norms", number, "bias", norm.size * 4 if norm.bias else 0
    for number, matrix in enumerate(spec.matrices):
        yield "matrices", number, "bias", matrix.rows * 4 if matrix.bias else 0
        panels, groups = -(-matrix.rows // LANES), -(-matrix.columns // GROUP)
        if matrix.dtype in GROUP_BYTES:
            yield "matrices", number, "scales", panels * groups * LANES * 2
            yield "matrices", number, "data", panels * groups * GROUP_BYTES[matrix.dtype]
        else:
            rows = matrix.rows if spec.is_table else panels * LANES
            yield "matrices", number, "data", rows * matrix.columns * ITEM_BYTES[matrix.dtype]


def block_bytes(spec: BlockSpec) -> int:
    """Return the size of a block, its header included; a multiple of 64."""
    return HEADER_BYTES + sum(-(-size // ALIGNMENT) * ALIGNMENT for *_, size in _pieces(spec))


def header_of(spec: BlockSpec) -> np.ndarray:
    """Return the header of a block, uint8 [1024]: sizes, types, and where each piece lies."""
    header = np.zeros((), _HEADER)
    header["magic"] = BLOCK_MAGIC
    header["bytes"] = block_bytes(spec)
    header["activation"] = ACTIVATIONS[spec.activation]
    for field in ("heads", "kv_heads", "head_dim", "cache_layer"):
        header[field] = getattr(spec, field)
    header["rotary"] = spec.is_rotary
    for number, norm in enumerate(spec.norms):
        entry = header["norms"][number]
        entry["kind"], entry["eps"], entry["size"] = NORMS[norm.kind], norm.eps, norm.size
    for number, matrix in enumerate(spec.matrices):
        entry = header["matrices"][number]
        entry["type"], entry["rows"], entry["columns"] = TYPES[matrix.dtype], matrix.rows, matrix.columns
    offset = HEADER_BYTES
    for kind, number, field, size in _pieces(spec):
        if size:
            header[kind][number][field] = offset
            offset += -(-size // ALIGNMENT) * ALIGNMENT
    whole = np.zeros(HEADER_BYTES, np.uint8)
    whole[: _HEADER.itemsize] = np.frombuffer(header.tobytes(), np.uint8)
    return whole


def anonymous_memory(size: int, huge_pages: bool = True) -> np.ndarray:
    """Return zeroed memory, uint8 [size], that takes room only where it is written.

    Huge pages spare the CPU the translation of addresses, but a page is then taken whole.
    """
    reserved = getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserved)
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


class BlockWriter:
    """Fills a new block piece by piece; a piece that is never filled stays zero.

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec
        >>> writer = BlockWriter(BlockSpec((MatrixSpec(20, 40, "int8"),)))  # doctest: +SKIP
        >>> writer.matrix(0, np.ones((20, 40), np.float32))  # doctest: +SKIP
        >>> writer.block.shape  # doctest: +SKIP
        (3200,)
    """

    def __init__(self, spec: BlockSpec) -> None:
        self.spec = spec
        self.block = anonymous_memory(block_bytes(spec))
        self.block[:HEADER_BYTES] = header_of(spec)
        self._header = self.block[: _HEADER.itemsize].view(_HEADER)[0]

    def matrix(self, number: int, weight: np.ndarray, first: int = 0) -> None:
        """Put weight [R, K] (float32, float16, or uint16 for the bits of bfloat16) at rows first .. first + R - 1.

        Raises:
            ValueError: the shape does not fit, or `first` is not a multiple of 16.
            OverflowError: a value is not finite, or is too large for the matrix's type.
        """
        spec = self.spec.matrices[number]
        fits = weight.ndim == 2 and weight.shape[1] == spec.columns and 0 <= first <= spec.rows - len(weight)
        if not fits or first % LANES:
            raise ValueError(
                f"a weight {list(weight.shape)} does not go to row {first} of [{spec.rows}, {spec.columns}]"
            )
        if weight.dtype.name not in SOURCE_TYPES:
            raise ValueError(f"a weight has dtype {weight.dtype}, expected one of {', '.join(SOURCE_TYPES)}")
        source = np.ascontiguousarray(weight)
        if self.spec.is_table:
            self._table(number, source, first)
            return
        if library().pack(self.block, number, first, source, SOURCE_TYPES[source.dtype.name]):
            raise OverflowError(f"values are not finite, or too large for {spec.dtype}")

    def _table(self, number: int, source: np.ndarray, first: int) -> None:
        spec, start = self.spec.matrices[number], int(self._header["matrices"][number]["data"])
        size = spec.rows * spec.columns * ITEM_BYTES[spec.dtype]
        rows = self.block[start : start + size].view(spec.dtype).reshape(spec.rows, spec.columns)
        wide = source if source.dtype != np.uint16 else (source.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            rows[first : first + len(source)] = wide
        if not np.isfinite(rows[first : first + len(source)]).all():
            raise OverflowError(f"values are not finite, or too large for {spec.dtype}")

    def matrix_bytes(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return views of the bytes of matrix `number`, and of its scales (empty where it has none)."""
        pieces = {
            field: size for kind, index, field, size in _pieces(self.spec) if (kind, index) == ("matrices", number)
        }
        entry = self._header["matrices"][number]
        starts = {field: int(entry[field]) for field in ("data", "scales")}
        data, scales = (self.block[start : start + pieces.get(field, 0)] for field, start in starts.items())
        return data, scales

    def vector(self, kind: str, number: int, field: str, values: np.ndarray, first: int = 0) -> None:
        """Put float values [N] at `first` of a bias or of a norm's weight: kind "matrices" or "norms".

        Raises:
            ValueError: the block has no such vector, or they do not fit into it.
        """
        sizes = {(piece, index, name): size // 4 for piece, index, name, size in _pieces(self.spec)}
        size = sizes.get((kind, number, field), 0)
        if not 0 <= first <= size - values.size:
            raise ValueError(
                f"{values.size} values do not go to place {first} of {kind} {number}'s {field}: it has room for {size}"
            )
        start = int(self._header[kind][number][field]) + first * 4
        self.block[start : start + values.size * 4].view(np.float32)[:] = values


def check_block(block: np.ndarray, spec: BlockSpec, name: str) -> None:
    """Compare a block that was read from a file with what the config asks for.

    Raises:
        ValueError: it is another kind of block, or of other sizes or types.
    """
    if block.size < block_bytes(spec) or not np.array_equal(block[:HEADER_BYTES], header_of(spec)):
        raise ValueError(
            f"{name} is no block of packed weights that this version and config.json ask for: convert the checkpoint "
            "again with `share4v convert`"
        )


def unpack_matrix(block: np.ndarray, spec: BlockSpec, number: int) -> np.ndarray:
    """Return matrix `number` of a block as float32 [rows, columns]; integers come multiplied by their scales."""
    matrix = spec.matrices[number]
    if spec.is_table:
        start = int(block[: _HEADER.itemsize].view(_HEADER)[0]["matrices"][number]["data"])
        size = matrix.rows * matrix.columns * ITEM_BYTES[matrix.dtype]
        rows = block[start : start + size].view(matrix.dtype).reshape(matrix.rows, matrix.columns)
        return rows.astype(np.float32)
    return library().unpack(block, number, matrix.rows, matrix.columns)


def read_vector(block: np.ndarray, kind: str, number: int, field: str, size: int) -> np.ndarray:
    """Return a bias or a norm's weight of a block, float32 [size]."""
    start = int(block[: _HEADER.itemsize].view(_HEADER)[0][kind][number][field])
    return block[start : start + size * 4].view(np.float32).copy()
