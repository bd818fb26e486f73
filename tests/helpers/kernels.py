"""What the C++ kernels should compute, in NumPy and float64, and their memory read back without their help."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import Library, library
from mindone.models.share4v.kernels.packing import (
    ACTIVATIONS,
    NORMS,
    BlockSpec,
    BlockWriter,
    MatrixSpec,
    NormSpec,
)

DTYPES = ("float32", "float16", "bfloat16", "int8", "int4", "int8-256", "int4-256")
CACHE_DTYPES = ("float32", "float16", "int8")
UNIT = 2.0**-24  # the largest relative error of one float32 rounding
LANES, GROUP, SUPER = 16, 32, 256

erf = np.vectorize(math.erf, otypes=[np.float64])


def normals(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return float32 values of a normal distribution."""
    return rng.normal(size=shape).astype(np.float32)


# ---- numbers as the integer kernels round them -------------------------------------------------------------------


def in_groups(values: np.ndarray, size: int = GROUP) -> np.ndarray:
    """Return [R, K] as [R, ceil(K / size), size], filled up with zeros."""
    rows, columns = values.shape
    groups = -(-columns // size)
    padded = np.zeros((rows, groups * size), values.dtype)
    padded[:, :columns] = values
    return padded.reshape(rows, groups, size)


def input_group(dtype: str) -> int:
    """Return how many inputs share a scale in these tests, unless they say otherwise."""
    return SUPER if dtype.endswith("-256") else GROUP


def rounded_inputs(x: np.ndarray, group: int = GROUP) -> np.ndarray:
    """Return x [R, K] after rounding to int8 by groups; each float32 step as format.h and matrix_int.h say."""
    groups = in_groups(x, group)
    size = np.abs(groups).max(-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        factor = np.where(size > 0, np.float32(127) / size, np.float32(0))
    factor = np.where(factor <= np.float32(3e38), factor, np.float32(0))
    whole = np.rint(groups * factor).astype(np.float64)
    return (whole * (size / np.float32(127)).astype(np.float64)).reshape(len(x), -1)[:, : x.shape[1]]


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Return float64 values of x rounded to 8 significant bits, ties to even; bfloat16 is that, in float32's range."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(fraction * 256), exponent - 8)


def rounds_inputs(dtype: str) -> bool:
    """Return whether the kernels round the inputs of a product with weights of this type."""
    return dtype not in ("float32", "float16")


def inputs_of(x: np.ndarray, dtype: str, group: int | None = None) -> np.ndarray:
    """Return float32 inputs [R, K] as the kernels multiply them with weights of a type, in float64."""
    if dtype == "bfloat16":
        return to_bfloat16(x)
    return rounded_inputs(x, group or input_group(dtype)) if rounds_inputs(dtype) else x.astype(np.float64)


def hadamard(x: np.ndarray, size: int) -> np.ndarray:
    """Multiply blocks of x [R, K] by the orthonormal Hadamard matrix of Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (x.reshape(len(x), -1, size) @ (matrix / size**0.5)).reshape(x.shape)


@dataclass(frozen=True)
class Stored:
    """An integer matrix as it lies in a block: whole numbers [N, G, 32] and scales [N, G], both float64.

    The scales of super-blocks are repeated for their groups; the whole numbers are s * (q - 8) + z there.
    """

    whole: np.ndarray
    scales: np.ndarray


def matrix_offsets(block: np.ndarray, number: int) -> tuple[int, int]:
    """Return where a matrix's data and its scales begin, from the header as format.h lays it out."""
    *_, data, scales, _ = struct.unpack_from("<ii5q", block, 104 + 48 * number)
    return data, scales


def stored_integers(block: np.ndarray, spec: BlockSpec, number: int) -> Stored:
    """Read an integer matrix by format.h's description alone."""
    matrix = spec.matrices[number]
    panels, groups, supers = -(-matrix.rows // LANES), -(-matrix.columns // GROUP), -(-matrix.columns // SUPER)
    start, at = matrix_offsets(block, number)
    quads = 8 if matrix.dtype.startswith("int8") else 4
    data = block[start : start + panels * groups * quads * LANES * 4].reshape(panels, groups, quads, LANES, 4)
    if quads == 8:
        whole = data.view(np.int8).astype(np.float64)
    else:
        low, high = (data & 15).astype(np.float64) - 8, (data >> 4).astype(np.float64) - 8
        whole = np.concatenate((low, high), axis=2)
    whole = whole.transpose(0, 3, 1, 2, 4).reshape(panels * LANES, groups, GROUP)
    is_super = matrix.dtype.endswith("-256")
    count = supers if is_super else groups
    width = (count + (groups if matrix.dtype == "int4-256" else 0)) * LANES * 2
    stored = block[at : at + panels * width].reshape(panels, width)
    scales = np.ascontiguousarray(stored[:, : count * LANES * 2]).view(np.float16).reshape(panels, count, LANES)
    scales = scales.transpose(0, 2, 1).reshape(-1, count).astype(np.float64)
    if is_super:
        scales = scales.repeat(SUPER // GROUP, 1)[:, :groups]
    if matrix.dtype == "int4-256":
        pairs = np.ascontiguousarray(stored[:, count * LANES * 2 :]).view(np.int8).reshape(panels, groups, LANES, 2)
        pairs = pairs.transpose(0, 2, 1, 3).reshape(-1, groups, 2).astype(np.float64)
        whole = whole * pairs[..., :1] + pairs[..., 1:]
    return Stored(whole[: matrix.rows], scales[: matrix.rows])


def stored_weight(block: np.ndarray, spec: BlockSpec, number: int) -> np.ndarray:
    """Read matrix `number` of a block as float64 [N, K]."""
    matrix = spec.matrices[number]
    if matrix.dtype.startswith("int"):
        stored = stored_integers(block, spec, number)
        return (stored.whole * stored.scales[..., None]).reshape(matrix.rows, -1)[:, : matrix.columns]
    start, _ = matrix_offsets(block, number)
    if matrix.dtype == "bfloat16":
        pairs = -(-matrix.columns // GROUP) * GROUP // 2
        bits = block[start : start + -(-matrix.rows // LANES) * LANES * pairs * 4].view(np.uint16)
        bits = bits.reshape(-1, pairs, LANES, 2).transpose(0, 2, 1, 3).reshape(-1, pairs * 2)
        wide = (bits.astype(np.uint32) << 16).view(np.float32)
        return wide[: matrix.rows, : matrix.columns].astype(np.float64)
    panels, item = -(-matrix.rows // LANES), np.dtype(matrix.dtype).itemsize
    data = block[start : start + panels * LANES * matrix.columns * item].view(matrix.dtype)
    data = data.reshape(panels, matrix.columns, LANES).transpose(0, 2, 1).reshape(panels * LANES, matrix.columns)
    return data[: matrix.rows].astype(np.float64)


# ---- a row at a time ---------------------------------------------------------------------------------------------


def norm(spec: NormSpec, weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """RMSNorm or LayerNorm of rows x [R, H]."""
    x = x.astype(np.float64)
    if spec.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(spec.eps)) * weight
    return y if bias is None else y + bias


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def activation(kind: str | None, x: np.ndarray) -> np.ndarray:
    """An activation of float64 values; the gated one takes the gate's half and then the other's."""
    if kind == "gelu":
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))
    if kind == "quick_gelu":
        return x * sigmoid(np.float64(np.float32(1.702)) * x)
    if kind == "gated_silu":
        gate, up = np.split(x, 2, axis=-1)
        return gate * sigmoid(gate) * up
    return x


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Hugging Face's rotary embedding of heads x [..., D]; the tables' halves are equal."""
    first, second = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate((-second, first), -1) * sin


def rotary_tables(positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin, float32 [R, D], of LLaMA's rotary embedding."""
    angles = positions[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
    angles = np.concatenate((angles, angles), -1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


# ---- attention ---------------------------------------------------------------------------------------------------


def rows_of(*rows: tuple[int, int, int, int]) -> np.ndarray:
    """Return rows (text, slot, begin, end) as the kernels take them."""
    return np.array(rows, np.int32).reshape(-1, 4)


def causal(text: int, begin: int, end: int, padding: int = 0) -> np.ndarray:
    """Return the rows of slots begin .. end - 1 of a text whose first `padding` slots no row sees."""
    return rows_of(*((text, slot, padding, slot + 1) for slot in range(begin, end)))


def stored_keys(cache: CacheMemory, layer: int, text: int) -> np.ndarray:
    """Read a text's keys, float64 [slots, Hkv, D]."""
    keys = cache.keys[layer, text].transpose(0, 1, 3, 2).astype(np.float64)  # [Hkv, S / 16, 16, D]
    keys = keys.reshape(len(keys), -1, keys.shape[-1])
    if cache.scales is not None:
        keys = keys * cache.scales[0, layer, text][..., None]
    return keys.transpose(1, 0, 2)


def stored_values(cache: CacheMemory, layer: int, text: int, head_dim: int) -> np.ndarray:
    """Read a text's values, float64 [slots, Hkv, D]."""
    values = cache.values[layer, text, ..., :head_dim].astype(np.float64)
    if cache.scales is not None:
        values = values * cache.scales[1, layer, text][..., None]
    return values.transpose(1, 0, 2)


@dataclass(frozen=True)
class Attended:
    """Attention's result [R, H, D] and how far from it float32 may end."""

    out: np.ndarray
    tolerance: np.ndarray


def attend(query: np.ndarray, keys: np.ndarray, values: np.ndarray, rows: np.ndarray) -> Attended:
    """Attention of query [R, H, D] to keys and values [texts, slots, Hkv, D]; query is scaled already."""
    query = query.astype(np.float64)
    heads, size = query.shape[1:]
    # [texts, H, S, D]; a row's head is a matrix of one row, and rows that attend to the same slots are one of several.
    keys, values = (cached.repeat(heads // cached.shape[2], 2).transpose(0, 2, 1, 3) for cached in (keys, values))
    out, tolerance = np.zeros_like(query), np.zeros_like(query)
    spans, span_of = np.unique(rows[:, [0, 2, 3]], axis=0, return_inverse=True)
    for number, (text, begin, end) in enumerate(spans):
        at = np.flatnonzero(span_of.ravel() == number)
        asked, seen, held = query[at].transpose(1, 0, 2), keys[text, :, begin:end], values[text, :, begin:end]
        scores = asked @ seen.transpose(0, 2, 1)  # [H, R, S]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[at] = (weights @ held).transpose(1, 0, 2)
        # A score is off by at most `slip`, its exponential relatively by as much and 2 units of its own; then sums.
        slip = (size + 2) * UNIT * (np.abs(asked) @ np.abs(seen).transpose(0, 2, 1)).max(-1, keepdims=True)
        relative = 4 * slip + (2 * (end - begin) + 24) * UNIT
        slack = relative * (weights @ np.abs(held))
        slack += 2.0**-125 * np.abs(held).sum(1, keepdims=True)  # no exponential is below the smallest normal float32
        tolerance[at] = slack.transpose(1, 0, 2)
    return Attended(out, tolerance)


def attend_cache(cache: CacheMemory, layer: int, query: np.ndarray, rows: np.ndarray) -> Attended:
    """Attention to what a cache holds."""
    texts, head_dim = cache.keys.shape[1], query.shape[2]
    keys = np.stack([stored_keys(cache, layer, text) for text in range(texts)])
    values = np.stack([stored_values(cache, layer, text, head_dim) for text in range(texts)])
    return attend(query, keys, values, rows)


# ---- blocks and how the kernels are called -----------------------------------------------------------------------


def linear_block(
    rng: np.random.Generator,
    weight: np.ndarray,
    dtype: str,
    bias: bool = False,
    norm_spec: NormSpec | None = None,
    activation: str | None = None,
    group: int | None = None,
) -> tuple[np.ndarray, BlockSpec]:
    """Return a block of one matrix; its bias and its norm's vectors are random. `group`: see `input_group`."""
    norms = (norm_spec,) if norm_spec else ()
    matrix = MatrixSpec(*weight.shape, dtype, bias, group or input_group(dtype))
    spec = BlockSpec((matrix,), norms, activation)
    writer = BlockWriter(spec)
    write_matrix(writer, 0, weight)
    fill_vectors(rng, writer)
    return writer.block, spec


_packed: dict[tuple[str, str, tuple[int, ...], bytes], list[np.ndarray]] = {}


def write_matrix(writer: BlockWriter, number: int, weight: np.ndarray) -> None:
    """Write a weight as BlockWriter.matrix. Each kind of kernels packs a weight once for all tests.

    Packing takes the portable kind, and every kind under sanitizers, longer than most of what is tested then.
    """
    dtype = writer.spec.matrices[number].dtype
    key = (library().instruction_set, dtype, weight.shape, hashlib.sha256(np.ascontiguousarray(weight)).digest())
    if key not in _packed:
        writer.matrix(number, weight)
        _packed[key] = [part.copy() for part in writer.matrix_bytes(number)]
    for target, packed in zip(writer.matrix_bytes(number), _packed[key], strict=True):
        target[:] = packed


@contextmanager
def fastest_kind(kernels: Library) -> Iterator[None]:
    """Select the fastest kind, for packing large weights in a test that reads the weights back from the block."""
    before = kernels.instruction_set
    kernels.select(kernels.instruction_sets()[0])
    try:
        yield
    finally:
        kernels.select(before)


def fill_vectors(rng: np.random.Generator, writer: BlockWriter) -> None:
    """Give every bias and every norm of a block random values."""
    for number, matrix in enumerate(writer.spec.matrices):
        if matrix.bias:
            writer.vector("matrices", number, "bias", normals(rng, matrix.rows))
    for number, one in enumerate(writer.spec.norms):
        writer.vector("norms", number, "weight", normals(rng, one.size))
        if one.bias:
            writer.vector("norms", number, "bias", normals(rng, one.size))


def run_linear(kernels: Library, x: np.ndarray, block: np.ndarray, outputs: int, index: object = None) -> np.ndarray:
    """Return y [M, N] of the rows of x [R, K] that `index` names; all of them, in order, without it."""
    which = np.arange(len(x), dtype=np.int32) if index is None else np.asarray(index, np.int32)
    return kernels.call("share4v_linear", [x, which, block], np.zeros((len(which), outputs), np.float32))


def run_norm(
    kernels: Library, spec: NormSpec, weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray
) -> np.ndarray:
    return kernels.norm(NORMS[spec.kind], spec.eps, weight, bias, x)


def run_activation(kernels: Library, kind: str, x: np.ndarray, up: np.ndarray | None = None) -> np.ndarray:
    return kernels.activation(ACTIVATIONS[kind], x, up)


def linear_tolerance(x: np.ndarray, weight: np.ndarray, dtype: str) -> np.ndarray:
    """Return how far float32 sums may be from exact ones: a rounding a term (Higham 2002, 3.1), or a group of terms."""
    terms = -(-x.shape[1] // GROUP) + 2 if dtype.startswith("int") else x.shape[1] + 1
    return (terms + 1) * UNIT * (np.abs(x) @ np.abs(weight).T) + 1e-37
