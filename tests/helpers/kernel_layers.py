"""Complete transformer layers for the kernels' tests: packed random weights, and the expected results in float64."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import Library
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec, NormSpec, read_vector

from .kernels import (
    activation,
    attend,
    fill_vectors,
    hadamard,
    input_group,
    inputs_of,
    matrix_offsets,
    norm,
    normals,
    rotary_tables,
    rotate,
    rounds_inputs,
    run_activation,
    run_linear,
    run_norm,
    stored_weight,
    write_matrix,
)

LAYER_EPS = 1e-5


@dataclass(frozen=True)
class LayerShape:
    """Sizes and options of a layer; the activation "gated_silu" doubles the rows of the MLP's first matrix."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    norm: str = "rms"
    activation: str = "gated_silu"
    bias: bool = False
    is_rotary: bool = True
    hadamard: int = 0


LLAMA = LayerShape(72, 6, 2, 12, 100)
LLAMA_BIAS = replace(LLAMA, bias=True)
LLAMA_ROTATED = LayerShape(320, 3, 1, 64, 768, hadamard=256)  # a row of 320 ends in part of a super-block
CLIP = LayerShape(60, 3, 3, 20, 130, "layer", "quick_gelu", bias=True, is_rotary=False)
CLIP_GELU = replace(CLIP, activation="gelu")


@dataclass
class Layer:
    """A packed layer and its description."""

    shape: LayerShape
    block: np.ndarray
    spec: BlockSpec

    @classmethod
    def random(cls, rng: np.random.Generator, shape: LayerShape, dtype: str, cache_layer: int = 0) -> Layer:
        """Make a layer with random weights, scaled so that activations stay near one."""
        attended, first = shape.heads * shape.head_dim, shape.inner * (2 if shape.activation == "gated_silu" else 1)
        sizes = [
            (attended + 2 * shape.kv_heads * shape.head_dim, shape.hidden),
            (shape.hidden, attended),
            (first, shape.hidden),
            (shape.hidden, shape.inner),
        ]
        norms = (NormSpec(shape.norm, shape.hidden, LAYER_EPS, shape.norm == "layer"),) * 2
        spec = BlockSpec(
            tuple(
                MatrixSpec(*size, dtype, shape.bias, input_group(dtype), shape.hadamard if number == 3 else 0)
                for number, size in enumerate(sizes)
            ),
            norms,
            shape.activation,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.is_rotary,
            cache_layer,
        )
        writer = BlockWriter(spec)
        for number, (rows, columns) in enumerate(sizes):
            write_matrix(writer, number, normals(rng, rows, columns) / np.float32(columns**0.5))
        fill_vectors(rng, writer)
        return cls(shape, writer.block, spec)

    def cache(self, texts: int, capacity: int, dtype: str = "float32") -> CacheMemory:
        """Return an empty cache for the layer."""
        shape = self.shape
        return CacheMemory(self.spec.cache_layer + 1, texts, shape.kv_heads, shape.head_dim, capacity, dtype)

    def run(self, kernels: Library, cache: CacheMemory, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Run the kernel; a row's position is its slot minus the first slot of its sequence."""
        cos, sin = self.tables(rows)
        inputs = [x, self.block, cache.memory, rows, cos, sin]
        return kernels.call("share4v_layer", inputs, np.zeros_like(x))

    def tables(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rotary tables, float32 [R, D], of the rows' positions."""
        return rotary_tables(np.maximum(rows[:, 1] - rows[:, 2], 0), self.shape.head_dim)

    def vector(self, kind: str, number: int, field: str) -> np.ndarray | None:
        """Read a norm's weight or a bias; None where there is none."""
        spec = self.spec.norms[number] if kind == "norms" else self.spec.matrices[number]
        if field == "bias" and not spec.bias:
            return None
        size = spec.size if isinstance(spec, NormSpec) else spec.rows
        return read_vector(self.block, kind, number, field, size)


class ExactLayer:
    """A layer in float64, with the stored weights and, for integer types, inputs rounded as in the kernels."""

    def __init__(self, layer: Layer, texts: int, capacity: int) -> None:
        shape = layer.shape
        self.layer, self.shape = layer, shape
        self.weights = [stored_weight(layer.block, layer.spec, number) for number in range(4)]
        self.keys = np.zeros((texts, capacity, shape.kv_heads, shape.head_dim))
        self.values = np.zeros_like(self.keys)

    def __call__(self, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return y [R, H], and store the rows' keys and values for the next call."""
        shape, layer = self.shape, self.layer
        count, attended = len(x), shape.heads * shape.head_dim
        cos, sin = layer.tables(rows)
        wide = self._linear(0, self._norm(0, x))
        query = wide[:, :attended].reshape(count, shape.heads, shape.head_dim)
        key, value = np.split(wide[:, attended:], 2, axis=1)
        key = key.reshape(count, shape.kv_heads, shape.head_dim)
        if shape.is_rotary:
            query, key = rotate(query, cos[:, None], sin[:, None]), rotate(key, cos[:, None], sin[:, None])
        self.keys[rows[:, 0], rows[:, 1]] = key
        self.values[rows[:, 0], rows[:, 1]] = value.reshape(key.shape)
        out = attend(query / shape.head_dim**0.5, self.keys, self.values, rows).out
        y = x + self._linear(1, out.reshape(count, attended))
        return y + self._linear(3, activation(shape.activation, self._linear(2, self._norm(1, y))))

    def _norm(self, number: int, x: np.ndarray) -> np.ndarray:
        layer = self.layer
        weight, bias = layer.vector("norms", number, "weight"), layer.vector("norms", number, "bias")
        return norm(layer.spec.norms[number], weight, bias, x)

    def _linear(self, number: int, x: np.ndarray) -> np.ndarray:
        matrix = self.layer.spec.matrices[number]
        if matrix.hadamard:
            x = hadamard(x, matrix.hadamard)
        if rounds_inputs(matrix.dtype):
            x = inputs_of(x.astype(np.float32), matrix.dtype, matrix.input_group)
        bias = self.layer.vector("matrices", number, "bias")
        y = x @ self.weights[number].T
        return y if bias is None else y + bias


_expected: dict[bytes, np.ndarray] = {}


def exact_result(layer: Layer, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return y [R, H] of a layer and a new cache for one sequence, in float64; not to be changed.

    It is computed once for all kinds of kernels that pack the same bytes, since it takes longer than the kernels.
    """
    call = hashlib.sha256(layer.block)
    for array in (rows, x):
        call.update(array)
    key = call.digest()
    if key not in _expected:
        _expected[key] = ExactLayer(layer, 1, len(rows))(rows, x)
    return _expected[key]


def run_in_parts(layer: Layer, kernels: Library, cache: CacheMemory, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Compute the layer with the separate kernels, each of which has its own tests."""
    shape, count, attended = layer.shape, len(x), layer.shape.heads * layer.shape.head_dim
    products = [_linear_of(layer, number, kernels) for number in range(4)]

    def normal(number: int, at: np.ndarray) -> np.ndarray:
        weight, bias = layer.vector("norms", number, "weight"), layer.vector("norms", number, "bias")
        return run_norm(kernels, layer.spec.norms[number], weight, bias, at)

    def rotated(heads: np.ndarray) -> np.ndarray:
        if not shape.is_rotary:
            return heads
        tables = [np.repeat(table, heads.shape[1], axis=0) for table in layer.tables(rows)]
        return kernels.rotary(heads.reshape(-1, shape.head_dim).copy(), *tables).reshape(heads.shape)

    wide = products[0](normal(0, x))
    key, value = np.split(wide[:, attended:], 2, axis=1)
    query = rotated(wide[:, :attended].reshape(count, shape.heads, shape.head_dim))
    query = np.ascontiguousarray(query * (np.float32(1) / np.sqrt(np.float32(shape.head_dim))))
    key = np.ascontiguousarray(rotated(key.reshape(count, shape.kv_heads, shape.head_dim)))
    out = kernels.attention(cache.memory, layer.spec.cache_layer, rows, query, key, np.ascontiguousarray(value))
    y = x + products[1](out.reshape(count, attended))
    inner = products[2](normal(1, y))
    if shape.activation == "gated_silu":
        gate, up = (np.ascontiguousarray(half) for half in np.split(inner, 2, axis=1))
        inner = run_activation(kernels, "gated_silu", gate, up)
    else:
        inner = run_activation(kernels, shape.activation, inner)
    return y + products[3](inner)


def _linear_of(layer: Layer, number: int, kernels: Library) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that multiplies by one of a layer's matrices and adds its bias."""
    matrix = layer.spec.matrices[number]
    spec = BlockSpec((matrix,))
    writer = BlockWriter(spec)
    for target, at in zip(writer.matrix_bytes(0), matrix_offsets(layer.block, number), strict=True):
        target[:] = layer.block[at : at + len(target)]  # rounding once more might choose other scales
    bias = layer.vector("matrices", number, "bias")
    if bias is not None:
        writer.vector("matrices", 0, "bias", bias)
    return lambda x: run_linear(kernels, x, writer.block, matrix.rows)
