"""Random shapes, dtypes and rows against float64, with fixed seeds, for combinations that no other test lists."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernel_layers import ExactLayer, Layer, LayerShape
from helpers.kernels import (
    CACHE_DTYPES,
    DTYPES,
    attend_cache,
    inputs_of,
    linear_block,
    linear_tolerance,
    normals,
    rounds_inputs,
    rows_of,
    run_linear,
    stored_weight,
)

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import Library
from mindone.models.share4v.kernels.packing import read_vector


def size(rng: np.random.Generator, most: int) -> int:
    """Return a size up to `most`: small and large sizes are equally likely, multiples of 16 frequent."""
    value = int(np.exp(rng.uniform(0, np.log(most + 1))))
    return value if rng.random() < 0.7 else min(most, -(-value // 16) * 16)


def random_rows(rng: np.random.Generator, used: np.ndarray, begins: np.ndarray, most: int, capacity: int) -> np.ndarray:
    """Return the next rows of some sequences, interleaved and causal, and advance `used`."""
    rows = []
    while len(rows) < most:
        text = int(rng.integers(len(used)))
        for _ in range(size(rng, 20)):
            if used[text] < capacity and len(rows) < most:
                first = rng.integers(begins[text], used[text] + 1) if rng.random() < 0.2 else begins[text]
                rows.append((text, used[text], first, used[text] + 1))
                used[text] += 1
        if (used >= capacity).all():
            break
    return rows_of(*rows)


@pytest.mark.parametrize("seed", range(60))
def test_linear(kernels: Library, seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs, columns, rows = size(rng, 300), size(rng, 700), size(rng, 300)
    dtype, bias = str(rng.choice(DTYPES)), bool(rng.integers(2))
    kernels.threads = 2 if rng.random() < 0.2 else 1
    x = normals(rng, rows, columns) * (10.0 ** rng.integers(-4, 5, (rows, 1))).astype(np.float32)
    block, spec = linear_block(rng, normals(rng, outputs, columns), dtype, bias)
    index = rng.integers(-rows // 3 - 1, rows, size(rng, 300)).astype(np.int32)
    busy = index >= 0
    weight = stored_weight(block, spec, 0)
    inputs = inputs_of(x, dtype)[index[busy]]
    expected, tolerance = inputs @ weight.T, linear_tolerance(inputs, weight, dtype)
    if bias:
        expected += read_vector(block, "matrices", 0, "bias", outputs)
        tolerance += 2.0**-23 * np.abs(expected)
    y = run_linear(kernels, x, block, outputs, index)[busy]
    assert (np.abs(y - expected) <= tolerance).all(), (dtype, outputs, columns, rows)


@pytest.mark.parametrize("seed", range(40))
def test_attention(kernels: Library, seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    kv_heads, texts, capacity = size(rng, 4), size(rng, 5), size(rng, 200)
    heads, head_dim, layers = kv_heads * size(rng, 6), size(rng, 130), size(rng, 3)
    cache = CacheMemory(layers, texts, kv_heads, head_dim, capacity, str(rng.choice(CACHE_DTYPES)))
    layer, begins = int(rng.integers(layers)), rng.integers(0, capacity, texts) // 3
    used = begins.copy()
    kernels.threads = 2 if rng.random() < 0.2 else 1
    for _ in range(3):
        rows = random_rows(rng, used, begins, size(rng, 90), capacity)
        count, scale = len(rows), np.float32(rng.uniform(0.1, 3) / head_dim**0.5)
        query = normals(rng, count, heads, head_dim) * scale
        key, value = normals(rng, count, kv_heads * head_dim), normals(rng, count, kv_heads * head_dim)
        out = kernels.attention(cache.memory, layer, rows, query, key, value)
        exact = attend_cache(cache, layer, query, rows)
        assert (np.abs(out - exact.out) <= exact.tolerance).all(), (heads, kv_heads, head_dim, capacity)


@pytest.mark.parametrize("seed", range(30))
def test_layer(kernels: Library, seed: int) -> None:
    """Layers that mix the parts of LLaMA and CLIP, over three calls with idle rows."""
    rng = np.random.default_rng(2000 + seed)
    kv_heads, is_rotary = size(rng, 3), bool(rng.integers(2))
    shape = LayerShape(
        hidden=size(rng, 90) + 8,
        heads=kv_heads * size(rng, 4),
        kv_heads=kv_heads,
        head_dim=2 * size(rng, 30) if is_rotary else size(rng, 60),
        inner=size(rng, 150),
        norm=str(rng.choice(["rms", "layer"])),
        activation=str(rng.choice(["gated_silu", "gelu", "quick_gelu"])),
        bias=bool(rng.integers(2)),
        is_rotary=is_rotary,
    )
    dtype, texts, capacity = str(rng.choice(DTYPES)), size(rng, 4), 20 + size(rng, 100)
    layer = Layer.random(rng, shape, dtype, cache_layer=int(rng.integers(3)))
    cache, exact = layer.cache(texts, capacity), ExactLayer(layer, texts, capacity)
    begins = rng.integers(0, 20, texts)
    used = begins.copy()
    kernels.threads = 2 if rng.random() < 0.2 else 1
    for _ in range(3):
        busy = random_rows(rng, used, begins, size(rng, 60), capacity)
        if not len(busy):  # every text is full
            break
        rows = np.full((len(busy) + size(rng, 10), 4), -1, np.int32)
        places = np.sort(rng.permutation(len(rows))[: len(busy)])
        rows[places] = busy
        x = normals(rng, len(rows), shape.hidden)
        expected = exact(busy, x[places])
        y = layer.run(kernels, cache, rows, x)[places]
        reach = np.abs(expected).max()
        error = np.abs(y - expected)
        # An input on the edge of two numbers may round to the other; float32 and float16 have no such edge.
        assert error.max() <= (3e-2 if rounds_inputs(dtype) else 4e-6) * reach, (dtype, shape)
        assert np.median(error) <= 2e-6 * reach
