"""One layer with random weights on the kernels, for the benchmarks that measure layers by CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.kernels.packing import LANES, SUPER, BlockSpec, BlockWriter, MatrixSpec, NormSpec
from mindone.models.share4v.quantization import CONVERTED_LAYOUTS, LAYOUTS, PRECISIONS, Precision

REPEATED = 2 * LANES  # rows of random weights, which fill a matrix again and again


@dataclass(frozen=True)
class Sizes:
    """The sizes of a layer, and the types of its weights and of its cache."""

    hidden: int
    inner: int
    heads: int
    is_language: bool
    dtype: str
    cache: str
    input_group: int


def packed_layer(sizes: Sizes, generator: np.random.Generator) -> np.ndarray:
    """Return a block of random weights."""
    hidden, inner = sizes.hidden, sizes.inner
    shapes = [(3 * hidden, hidden), (hidden, hidden), (inner * (1 + sizes.is_language), hidden), (hidden, inner)]
    is_rotated = sizes.input_group == SUPER
    matrices = [MatrixSpec(*shape, sizes.dtype, not sizes.is_language, sizes.input_group) for shape in shapes]
    matrices[3] = replace(matrices[3], hadamard=SUPER if is_rotated else 0)
    norm = NormSpec("rms" if sizes.is_language else "layer", hidden, 1e-5, not sizes.is_language)
    head_dim, activation = hidden // sizes.heads, "gated_silu" if sizes.is_language else "quick_gelu"
    spec = BlockSpec(
        tuple(matrices), (norm, norm), activation, sizes.heads, sizes.heads, head_dim, is_rotary=sizes.is_language
    )
    writer = BlockWriter(spec)
    for number, matrix in enumerate(matrices):
        part = BlockWriter(BlockSpec((MatrixSpec(REPEATED, matrix.columns, sizes.dtype, False, sizes.input_group),)))
        part.matrix(
            0, (generator.standard_normal((REPEATED, matrix.columns)) * matrix.columns**-0.5).astype(np.float32)
        )
        for target, source in zip(writer.matrix_bytes(number), part.matrix_bytes(0), strict=True):
            if source.size:
                target[:] = np.tile(source, -(-target.size // source.size))[: target.size]
    for number in range(2):
        writer.vector("norms", number, "weight", np.ones(hidden, np.float32))
    return writer.block


def layer_call(sizes: Sizes, rows: np.ndarray, x: np.ndarray) -> Callable[[], object]:
    """Return a call of the layer on x [R, H]; `rows` [R, 4] are the kernel's, whose slots begin at 0."""
    block, head_dim = packed_layer(sizes, np.random.default_rng(0)), sizes.hidden // sizes.heads
    sequences, slots = int(rows[:, 0].max()) + 1, int(rows[:, 3].max())
    cache = CacheMemory(1, sequences, sizes.heads, head_dim, slots, sizes.cache)
    cos, sin = np.ones((len(rows), head_dim), np.float32), np.zeros((len(rows), head_dim), np.float32)
    y = np.empty_like(x)
    return lambda: library().call("share4v_layer", [x, block, cache.memory, rows, cos, sin], y)


def types_of(dtype: str) -> Precision:
    """Return the types of a model's parts as `share4v convert` writes them."""
    return LAYOUTS[dtype][CONVERTED_LAYOUTS[dtype]] if dtype in LAYOUTS else PRECISIONS[dtype]


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start
