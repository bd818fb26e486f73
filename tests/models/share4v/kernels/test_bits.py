"""The bits of a row depend only on that row: not on the batch, the chunk, or the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from helpers.kernel_layers import CLIP, LLAMA, Layer, LayerShape
from helpers.kernels import CACHE_DTYPES, DTYPES, causal, linear_block, normals, rows_of, run_linear

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import Library

ROWS = 300
# These kinds give the same bits; the portable kind has no fused multiply-add.
FUSED = ("avx2", "avx512", "avx512_bf16", "amx", "neon", "dotprod", "i8mm")


def selections(kernels: Library, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield batches of row numbers: one to all rows, chunks, with idle rows (-1) between, with 1 and 2 threads."""
    for row in (0, 1, 15, 16, 150, 255, 256, 299):
        yield np.array([row])
    for first in range(0, ROWS, 37):
        yield np.arange(first, min(ROWS, first + 37))
    yield np.where(rng.random(ROWS) < 0.9, -1, np.arange(ROWS))
    sparse = np.full(400, -1)
    sparse[np.sort(rng.permutation(400)[:ROWS])] = np.arange(ROWS)
    yield sparse
    for count in (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 32, 33, 300):
        yield np.sort(rng.permutation(ROWS)[:count])
    kernels.threads = 2
    for count in (1, 2, 7, 33, 300):
        yield np.sort(rng.permutation(ROWS)[:count])
    yield sparse


def assert_same_rows(out: np.ndarray, whole: np.ndarray, selection: np.ndarray) -> None:
    busy = selection >= 0
    assert np.isfinite(whole).all()
    assert np.array_equal(out[busy].view(np.uint32), whole[selection[busy]].view(np.uint32)), len(selection)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "columns"), [(150, 70), (33, 600), (20, 2100)])  # beyond a block of each
def test_linear(kernels: Library, rng: np.random.Generator, dtype: str, outputs: int, columns: int) -> None:
    x = normals(rng, ROWS, columns)
    block, _ = linear_block(rng, normals(rng, outputs, columns), dtype, bias=True, activation="quick_gelu")
    whole = run_linear(kernels, x, block, outputs)
    for selection in selections(kernels, rng):
        assert_same_rows(run_linear(kernels, x, block, outputs, selection), whole, selection)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("padding", [0, 21])
def test_attention(kernels: Library, rng: np.random.Generator, dtype: str, padding: int) -> None:
    cache = CacheMemory(1, 2, 2, 20, ROWS, dtype)
    rows = np.concatenate([causal(0, padding, 200, padding), causal(1, 0, 100 + padding)])
    query, key, value = normals(rng, ROWS, 6, 20), normals(rng, ROWS, 40), normals(rng, ROWS, 40)
    whole = kernels.attention(cache.memory, 0, rows, query, key, value)
    memory = cache.memory.copy()
    for selection in selections(kernels, rng):
        chosen = selection[selection >= 0]  # rows write what is there already
        out = kernels.attention(cache.memory, 0, rows[chosen], query[chosen], key[chosen], value[chosen])
        assert_same_rows(out, whole, chosen)
        assert np.array_equal(cache.memory, memory)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [LLAMA, CLIP], ids=["llama", "clip"])
def test_layer(kernels: Library, rng: np.random.Generator, dtype: str, shape: LayerShape) -> None:
    layer = Layer.random(rng, shape, dtype)
    if shape.is_rotary:
        rows = np.concatenate([causal(0, 5, 155, 5), causal(1, 0, 150)])
    else:
        rows = rows_of(*((text, slot, 0, 150) for text in (0, 1) for slot in range(150)))
    x, idle = normals(rng, ROWS, shape.hidden), np.array([[7, -1, 9, 3]], np.int32)
    cache = layer.cache(2, 155, "float16")
    layer.run(kernels, cache, rows, x)
    whole = layer.run(kernels, cache, rows, x)  # now every key and value is there
    for selection in selections(kernels, rng):
        busy = (selection >= 0)[:, None]
        chosen, inputs = np.where(busy, rows[selection], idle), np.where(busy, x[selection], np.float32(np.nan))
        assert_same_rows(layer.run(kernels, cache, chosen, inputs), whole, selection)


def test_a_prompt_in_chunks_is_the_whole_prompt(kernels: Library, rng: np.random.Generator) -> None:
    layer, rows, x = Layer.random(rng, LLAMA, "int4"), causal(0, 0, ROWS), normals(rng, ROWS, LLAMA.hidden)
    whole_cache = layer.cache(1, ROWS, "int8")
    whole = layer.run(kernels, whole_cache, rows, x)
    for size in (299, 128, 41):
        cache = layer.cache(1, ROWS, "int8")
        cuts = range(0, ROWS, size)
        parts = [layer.run(kernels, cache, rows[cut : cut + size], x[cut : cut + size]) for cut in cuts]
        assert np.array_equal(np.concatenate(parts), whole)
        assert np.array_equal(cache.memory, whole_cache.memory)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 13, 40])
def test_linear_is_the_same_with_every_kind(
    any_kernels: Library, rng: np.random.Generator, dtype: str, rows: int
) -> None:
    x, weight = normals(rng, rows, 2100), normals(rng, 75, 2100)
    results = []
    for _ in of_each_kind(any_kernels, dtype):
        block, _ = linear_block(np.random.default_rng(1), weight, dtype, bias=True, activation="quick_gelu")
        results.append((block, run_linear(any_kernels, x, block, 75)))
    assert_equal(results)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("head_dim", [20, 128])
def test_attention_is_the_same_with_every_kind(
    any_kernels: Library, rng: np.random.Generator, dtype: str, head_dim: int
) -> None:
    rows, width = causal(0, 3, 77, 3), 2 * head_dim
    query, key, value = normals(rng, 74, 6, head_dim), normals(rng, 74, width), normals(rng, 74, width)
    results = []
    for _ in of_each_kind(any_kernels, dtype):
        cache = CacheMemory(1, 1, 2, head_dim, 77, dtype)
        results.append((any_kernels.attention(cache.memory, 0, rows, query, key, value), cache.memory))
    assert_equal(results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [LLAMA, CLIP], ids=["llama", "clip"])
def test_layer_is_the_same_with_every_kind(
    any_kernels: Library, rng: np.random.Generator, dtype: str, shape: LayerShape
) -> None:
    rows, x, results = causal(0, 0, 60), normals(rng, 60, shape.hidden), []
    for _ in of_each_kind(any_kernels, dtype):
        layer = Layer.random(np.random.default_rng(2), shape, dtype)
        cache = layer.cache(1, 60, "int8")
        results.append((layer.run(any_kernels, cache, rows, x), cache.memory))
    assert_equal(results)


def of_each_kind(kernels: Library, dtype: str) -> Iterator[str]:
    """Yield each fused kind that this CPU supports, selected; then restore the previous selection.

    AMX adds products of bfloat16 in an order of its own (test_bfloat16.py).
    """
    before = kernels.instruction_set
    for kind in kernels.instruction_sets():
        if kind in FUSED and (kind, dtype) != ("amx", "bfloat16"):
            kernels.select(kind)
            yield kind
    kernels.select(before)


def assert_equal(results: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert np.array_equal(one, same)
