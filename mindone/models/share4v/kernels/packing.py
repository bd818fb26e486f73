"""Blocks of packed weights, one per operator call; csrc/format.h describes the memory layout."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..bfloat16 import BFLOAT16, from_bfloat16, to_bfloat16
from .library import library

LANES, GROUP, SUPER, HEADER_BYTES, ALIGNMENT = 16, 32, 256, 1024, 64
BLOCK_MAGIC = b"sh4vblk1"

_NORM = np.dtype([("kind", "<i4"), ("eps", "<f4"), ("size", "<i8"), ("weight", "<i8"), ("bias", "<i8")])
_MATRIX = np.dtype(
    [("type", "<i4"), ("input_group", "<i2"), ("hadamard", "<i2")]
    + [(name, "<i8") for name in ("rows", "columns", "data", "scales", "bias")]
)
_HEADER = np.dtype(
    [("magic", "S8"), ("bytes", "<i8")]
    + [(name, "<i4") for name in ("activation", "heads", "kv_heads", "head_dim", "rotary", "cache_layer")]
    + [("norms", _NORM, 2), ("matrices", _MATRIX, 4), ("rotation", "<i8")]
)

# The layouts of a matrix; csrc/format.h describes them. "bfloat16" has its columns in pairs, filled up to groups of 32.
# "int8" and "int4" have a float16 scale per 32 weights,
# "int8-256" and "int4-256" one per 256, and "int4-256" an integer scale and offset per 32 too.
TYPES = {"float32": 0, "float16": 1, "bfloat16": 4, "int8": 2, "int4": 3, "int8-256": 5, "int4-256": 6}
# NumPy dtypes of weights to pack. A bfloat16 weight is given as its bits, uint16.
SOURCE_TYPES = {"float32": 0, "float16": 1, "uint16": 4}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Bytes of the weights of one group of a panel.
GROUP_BYTES = {"int8": 512, "int4": 256, "int8-256": 512, "int4-256": 256}
NORMS = {"rms": 1, "layer": 2}
ACTIVATIONS = {None: 0, "gelu": 1, "quick_gelu": 2, "gated_silu": 3}


@dataclass(frozen=True)
class MatrixSpec:
    """A weight matrix [rows, columns], stored as `dtype` (one of TYPES), with a float32 bias or none.

    Attributes:
        input_group: how many inputs share a scale when they are rounded to int8, 32 or 256; unused by float types.
        hadamard: the inputs are multiplied, in blocks of this many, by an orthonormal Hadamard matrix before the
            product (a power of two up to 256 that divides the columns; only of a layer's last matrix); 0: they are not.
    """

    rows: int
    columns: int
    dtype: str
    bias: bool = False
    input_group: int = GROUP
    hadamard: int = 0

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales of one panel."""
        groups, supers = -(-self.columns // GROUP), -(-self.columns // SUPER)
        scales = {"int8": groups, "int4": groups, "int8-256": supers, "int4-256": supers + groups}
        return scales[self.dtype] * LANES * 2

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights in panels, with their scales, without the bias."""
        panels, groups = -(-self.rows // LANES), -(-self.columns // GROUP)
        if self.dtype in GROUP_BYTES:
            return panels * (groups * GROUP_BYTES[self.dtype] + self.scale_bytes)
        return panels * LANES * self.stored_columns * ITEM_BYTES[self.dtype]

    @property
    def stored_columns(self) -> int:
        """The columns of a float matrix in panels, with those that only fill it up."""
        return -(-self.columns // GROUP) * GROUP if self.dtype == "bfloat16" else self.columns


@dataclass(frozen=True)
class NormSpec:
    """A norm over `size` values: kind "rms" or "layer" (which may have a bias)."""

    kind: str
    size: int
    eps: float
    bias: bool = False


@dataclass(frozen=True)
class BlockSpec:
    """The contents of a block: its matrices and norms, and the sizes of attention in a transformer layer.

    An embedding table (`is_table`) is stored row by row instead of in panels, and never as integers. A layer with
    `is_rotated` first multiplies its rows by an orthogonal matrix (see BlockWriter.rotation).
    """

    matrices: tuple[MatrixSpec, ...]
    norms: tuple[NormSpec, ...] = ()
    activation: str | None = None
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    is_rotary: bool = False
    cache_layer: int = 0
    is_table: bool = False
    is_rotated: bool = False


def rotation_values(size: int) -> int:
    """Return the number of values of a rotation of rows of `size` values; csrc/format.h (Block) describes them."""
    parts = size // (size & -size)
    return size + parts * parts


def _pieces(spec: BlockSpec) -> Iterator[tuple[str, int, str, int]]:
    """Yield (kind, number, field, bytes) of each piece of a block, in memory order."""
    if spec.is_rotated:
        yield "rotation", 0, "", rotation_values(spec.norms[0].size) * 4
    for number, norm in enumerate(spec.norms):
        yield "norms", number, "weight", norm.size * 4
        yield "norms", number, "bias", norm.size * 4 if norm.bias else 0
    for number, matrix in enumerate(spec.matrices):
        yield "matrices", number, "bias", matrix.rows * 4 if matrix.bias else 0
        panels, groups = -(-matrix.rows // LANES), -(-matrix.columns // GROUP)
        if matrix.dtype in GROUP_BYTES:
            yield "matrices", number, "scales", panels * matrix.scale_bytes
            yield "matrices", number, "data", panels * groups * GROUP_BYTES[matrix.dtype]
        else:
            values = matrix.rows * matrix.columns if spec.is_table else panels * LANES * matrix.stored_columns
            yield "matrices", number, "data", values * ITEM_BYTES[matrix.dtype]


def block_bytes(spec: BlockSpec) -> int:
    """Return the size of a block with its header in bytes, a multiple of 64."""
    return HEADER_BYTES + sum(-(-size // ALIGNMENT) * ALIGNMENT for *_, size in _pieces(spec))


def header_of(spec: BlockSpec) -> np.ndarray:
    """Return the header of a block, uint8 [1024]: sizes, types, and the offset of each piece."""
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
        entry["input_group"] = 0 if matrix.input_group == GROUP else matrix.input_group
        entry["hadamard"] = matrix.hadamard
    offset = HEADER_BYTES
    for kind, number, field, size in _pieces(spec):
        if size:
            if kind == "rotation":
                header[kind] = offset
            else:
                header[kind][number][field] = offset
            offset += -(-size // ALIGNMENT) * ALIGNMENT
    padded = np.zeros(HEADER_BYTES, np.uint8)
    padded[: _HEADER.itemsize] = np.frombuffer(header.tobytes(), np.uint8)
    return padded


def anonymous_memory(size: int, huge_pages: bool = True) -> np.ndarray:
    """Return zeroed memory, uint8 [size], whose pages are allocated when they are first written.

    Huge pages (2 MiB) cost fewer TLB misses, but each is allocated as a whole.
    """
    reserved = getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserved)
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the system has no huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


@dataclass(frozen=True)
class RoundedRows:
    """Rows of an "int4-256" matrix: weight [r, k] is scales[r, k // 256] * (s * (code - 8) + z) of its group of 32.

    Attributes:
        codes: uint8 [R, K], 0 .. 15.
        pairs: int8 [R, ceil(K / 32), 2], s and z.
        scales: float16 [R, ceil(K / 256)].
    """

    codes: np.ndarray
    pairs: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class RoundedGroups:
    """Rows of an "int8" or "int4" matrix: weight [r, k] is scales[r, k // 32] * codes[r, k].

    Attributes:
        codes: int8 [R, K], -127 .. 127, or -8 .. 7 for "int4".
        scales: float16 [R, ceil(K / 32)].
    """

    codes: np.ndarray
    scales: np.ndarray


class BlockWriter:
    """Fills a new block piece by piece; pieces that are not written remain zero.

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

    def matrix(self, number: int, weight: np.ndarray, first: int = 0, importance: np.ndarray | None = None) -> None:
        """Write weight [R, K] (float32, float16, or uint16 for the bits of bfloat16) to rows first .. first + R - 1.

        `importance` [K], the mean square of each input, says for "int4-256" how much each weight's error matters; by
        default all matter the same.

        Raises:
            ValueError: the shape or dtype does not fit, or `first` is not a multiple of 16.
            OverflowError: a value is not finite, or is too large for the matrix's type.
        """
        spec = self.spec.matrices[number]
        fits = weight.ndim == 2 and weight.shape[1] == spec.columns and 0 <= first <= spec.rows - len(weight)
        if not fits or first % LANES:
            raise ValueError(
                f"a weight of shape {list(weight.shape)} cannot be written at row {first} of a matrix "
                f"[{spec.rows}, {spec.columns}]; the first row must be a multiple of {LANES}"
            )
        if weight.dtype.name not in SOURCE_TYPES:
            raise ValueError(f"a weight has dtype {weight.dtype}: expected one of {', '.join(SOURCE_TYPES)}")
        source = np.ascontiguousarray(weight)
        if self.spec.is_table:
            self._write_table(number, source, first)
            return
        if library().pack(self.block, number, first, source, SOURCE_TYPES[source.dtype.name], importance):
            raise OverflowError(f"values are not finite, or too large for {spec.dtype}")

    def codes(self, number: int, rounded: RoundedRows, first: int = 0) -> None:
        """Write rows of an "int4-256" matrix that were rounded already to rows first .. first + R - 1.

        Raises:
            ValueError: the matrix has another type or size, or `first` is not a multiple of 16.
        """
        spec = self.spec.matrices[number]
        count, columns = rounded.codes.shape
        fits = spec.dtype == "int4-256" and columns == spec.columns and 0 <= first <= spec.rows - count
        if not fits or first % LANES:
            raise ValueError(f"codes [{count}, {columns}] cannot be written at row {first} of {spec}")
        panels, groups, supers = -(-count // LANES), -(-columns // GROUP), -(-columns // SUPER)
        codes = np.full((panels * LANES, groups * GROUP), 8, np.uint8)  # 8 stands for the offset alone
        codes[:count, :columns] = rounded.codes
        data, scales = self.matrix_bytes(number)
        start = first // LANES * groups * GROUP_BYTES[spec.dtype]
        packed = _nibble_panels(codes)
        data[start : start + packed.size] = packed
        target = scales[first // LANES * spec.scale_bytes :][: panels * spec.scale_bytes].reshape(panels, -1)
        d = np.zeros((panels * LANES, supers), np.float16)
        d[:count] = rounded.scales
        pairs = np.zeros((panels * LANES, groups, 2), np.int8)
        pairs[:, :, 0] = 1  # of rows beyond the last too, as packing writes them
        pairs[:count] = rounded.pairs
        target[:, : supers * LANES * 2] = (
            np.ascontiguousarray(d.reshape(panels, LANES, supers).transpose(0, 2, 1)).view(np.uint8).reshape(panels, -1)
        )
        pairs = pairs.reshape(panels, LANES, groups, 2).transpose(0, 2, 1, 3)
        target[:, supers * LANES * 2 :] = np.ascontiguousarray(pairs).view(np.uint8).reshape(panels, -1)

    def groups(self, number: int, rounded: RoundedGroups, first: int = 0) -> None:
        """Write rows of an "int8" or "int4" matrix that were rounded already to rows first .. first + R - 1.

        Raises:
            ValueError: the matrix has another type or size, or `first` is not a multiple of 16.
        """
        spec = self.spec.matrices[number]
        count, columns = rounded.codes.shape
        fits = spec.dtype in ("int8", "int4") and columns == spec.columns and 0 <= first <= spec.rows - count
        if not fits or first % LANES:
            raise ValueError(f"codes [{count}, {columns}] cannot be written at row {first} of {spec}")
        panels, groups = -(-count // LANES), -(-columns // GROUP)
        codes = np.zeros((panels * LANES, groups * GROUP), np.int8)
        codes[:count, :columns] = rounded.codes
        data, scales = self.matrix_bytes(number)
        if spec.dtype == "int4":
            packed = _nibble_panels((codes + np.int8(8)).view(np.uint8))
        else:
            packed = codes.reshape(panels, LANES, groups, 8, 4).transpose(0, 2, 3, 1, 4).reshape(-1).view(np.uint8)
        start = first // LANES * groups * GROUP_BYTES[spec.dtype]
        data[start : start + packed.size] = packed
        target = scales[first // LANES * spec.scale_bytes :][: panels * spec.scale_bytes].view(np.float16)
        wide = np.zeros((panels * LANES, groups), np.float16)
        wide[:count] = rounded.scales
        target[:] = wide.reshape(panels, LANES, groups).transpose(0, 2, 1).reshape(-1)

    def _write_table(self, number: int, source: np.ndarray, first: int) -> None:
        rows = _table(self.block, self.spec.matrices[number], number)[first : first + len(source)]
        wide = source if source.dtype != np.uint16 else from_bfloat16(source.view(BFLOAT16))
        with np.errstate(over="ignore"):
            rows[:] = to_bfloat16(wide) if rows.dtype == BFLOAT16 else wide
        if not np.isfinite(from_bfloat16(rows) if rows.dtype == BFLOAT16 else rows).all():
            raise OverflowError(f"values are not finite, or too large for {self.spec.matrices[number].dtype}")

    def matrix_bytes(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return views, uint8, of the packed data of matrix `number` and of its scales (empty for float types)."""
        sizes = {
            field: size for kind, index, field, size in _pieces(self.spec) if (kind, index) == ("matrices", number)
        }
        entry = self._header["matrices"][number]
        starts = {field: int(entry[field]) for field in ("data", "scales")}
        data, scales = (self.block[start : start + sizes.get(field, 0)] for field, start in starts.items())
        return data, scales

    def rotation(self, values: np.ndarray) -> None:
        """Write the rotation of a block whose spec has `is_rotated`, float32 [rotation_values(H)]."""
        start = int(self._header["rotation"])
        self.block[start : start + values.size * 4].view(np.float32)[:] = values

    def vector(self, kind: str, number: int, field: str, values: np.ndarray, first: int = 0) -> None:
        """Write values [N] at index `first` of a vector: the bias of a matrix, or the weight or bias of a norm.

        Args:
            kind: "matrices" or "norms".
            number: index of the matrix or norm.
            field: "weight" or "bias".

        Raises:
            ValueError: the block has no such vector, or the values do not fit into it.
        """
        sizes = {(piece, index, name): size // 4 for piece, index, name, size in _pieces(self.spec)}
        size = sizes.get((kind, number, field), 0)
        if not 0 <= first <= size - values.size:
            raise ValueError(
                f"{values.size} values do not fit at index {first} of the {field} of {kind}[{number}], which has {size}"
            )
        start = int(self._header[kind][number][field]) + first * 4
        self.block[start : start + values.size * 4].view(np.float32)[:] = values


def _table(block: np.ndarray, matrix: MatrixSpec, number: int) -> np.ndarray:
    """Return a view of an embedding table, [rows, columns]; of bfloat16 it has the dtype BFLOAT16."""
    start = int(block[: _HEADER.itemsize].view(_HEADER)[0]["matrices"][number]["data"])
    stored = block[start : start + matrix.rows * matrix.columns * ITEM_BYTES[matrix.dtype]]
    return stored.view(BFLOAT16 if matrix.dtype == "bfloat16" else matrix.dtype).reshape(matrix.rows, matrix.columns)


def _nibble_panels(codes: np.ndarray) -> np.ndarray:
    """Pack codes 0 .. 15, uint8 [16 N, 32 G], as the int4 types store them, uint8 [N * G * 256]."""
    panels, groups = codes.shape[0] // LANES, codes.shape[1] // GROUP
    quads = codes.reshape(panels, LANES, groups, 2, 4, 4).transpose(0, 2, 3, 4, 1, 5)  # [N, G, 2, 4, 16, 4]
    packed: np.ndarray = (quads[:, :, 0] | quads[:, :, 1] << 4).reshape(-1)
    return packed


def check_block(block: np.ndarray, spec: BlockSpec, name: str) -> None:
    """Check that a block read from a file has the header of `spec`.

    Raises:
        ValueError: the block has other contents, sizes or types.
    """
    if block.size < block_bytes(spec) or not np.array_equal(block[:HEADER_BYTES], header_of(spec)):
        raise ValueError(
            f"{name} is not the block of packed weights that config.json and this version expect: convert the "
            "checkpoint again with `share4v convert`"
        )


def unpack_matrix(block: np.ndarray, spec: BlockSpec, number: int) -> np.ndarray:
    """Return matrix `number` of a block as float32 [rows, columns], dequantized."""
    matrix = spec.matrices[number]
    if spec.is_table:
        rows = _table(block, matrix, number)
        return from_bfloat16(rows) if rows.dtype == BFLOAT16 else rows.astype(np.float32)
    return library().unpack(block, number, matrix.rows, matrix.columns)


def read_vector(block: np.ndarray, kind: str, number: int, field: str, size: int) -> np.ndarray:
    """Return a vector of a block, float32 [size]; see BlockWriter.vector."""
    start = int(block[: _HEADER.itemsize].view(_HEADER)[0][kind][number][field])
    return block[start : start + size * 4].view(np.float32).copy()
