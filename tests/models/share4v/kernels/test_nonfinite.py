"""NaN and infinity propagate within their row and never reach another row."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from helpers.kernel_layers import LLAMA, Layer
from helpers.kernels import CACHE_DTYPES, DTYPES, causal, linear_block, normals, run_linear

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import Library
from mindone.models.share4v.kernels.packing import NormSpec

VALUES = [np.nan, np.inf, -np.inf]
HEADS, KV_HEADS, HEAD_DIM, TOKENS = 6, 2, 20, 40


def check_only(bad: int, y: np.ndarray, clean: np.ndarray, case: tuple[float, int]) -> None:
    """Check that row `bad` is not finite and that the others have the bits of `clean`."""
    assert not np.isfinite(y[bad]).any(), case
    assert np.array_equal(np.delete(y, bad, 0), np.delete(clean, bad, 0)), case


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    inputs = normals(rng, 45, 100)
    block, _ = linear_block(rng, normals(rng, 40, 100), dtype, bias=True)
    for rows in (1, 5, 13, 45):
        clean, bad = run_linear(kernels, inputs[:rows], block, 40), rows // 2
        for value, column in product(VALUES, (0, 40, 99)):
            x = inputs[:rows].copy()
            x[bad, column] = value
            check_only(bad, run_linear(kernels, x, block, 40), clean, (value, column))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_linear_behind_a_norm(kernels: Library, rng: np.random.Generator, dtype: str, norm: str) -> None:
    x, spec = normals(rng, 9, 100), NormSpec(norm, 100, 1e-5)
    block, _ = linear_block(rng, normals(rng, 40, 100), dtype, norm_spec=spec, activation="gelu")
    clean = run_linear(kernels, x, block, 40)
    for value in VALUES:
        x[4, 77] = value
        check_only(4, run_linear(kernels, x, block, 40), clean, (value, 77))


def attention(kernels: Library, dtype: str, inputs: list[np.ndarray]) -> np.ndarray:
    cache = CacheMemory(1, 1, KV_HEADS, HEAD_DIM, TOKENS, dtype)
    return kernels.attention(cache.memory, 0, causal(0, 0, TOKENS), *inputs)


def attention_inputs(rng: np.random.Generator) -> list[np.ndarray]:
    """Return query [R, H, D], key and value [R, Hkv * D]."""
    width = KV_HEADS * HEAD_DIM
    return [normals(rng, TOKENS, HEADS, HEAD_DIM), normals(rng, TOKENS, width), normals(rng, TOKENS, width)]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_query(kernels: Library, rng: np.random.Generator, dtype: str, value: float) -> None:
    inputs = attention_inputs(rng)
    clean = attention(kernels, dtype, inputs)
    inputs[0][17, 4, 3] = value
    y = attention(kernels, dtype, inputs)
    assert not np.isfinite(y[17, 4]).any()
    y[17, 4] = clean[17, 4]
    assert np.array_equal(y, clean)


@pytest.mark.parametrize("value", [*VALUES, 1e5, -1e5])
@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("which", [1, 2], ids=["key", "value"])
def test_key_and_value(kernels: Library, rng: np.random.Generator, dtype: str, value: float, which: int) -> None:
    """In the second key/value head, which the last three query heads share; 1e5 exceeds float16."""
    if np.isfinite(value) and dtype != "float16":
        pytest.skip("1e5 fits")
    inputs = attention_inputs(rng)
    clean = attention(kernels, dtype, inputs)
    inputs[which][25, HEAD_DIM + 3] = value
    y = attention(kernels, dtype, inputs)
    seeing, other_heads = y[25:, 3:], y[25:, :3]
    assert not np.isfinite(seeing).all(-1).any()  # each row and head that sees it shows it
    assert np.array_equal(y[:25], clean[:25])
    assert np.array_equal(other_heads, clean[25:, :3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_layer(kernels: Library, rng: np.random.Generator, dtype: str, cache_dtype: str) -> None:
    """Rows that attend to a non-finite row become non-finite; earlier rows and other sequences keep their bits."""
    layer, x = Layer.random(rng, LLAMA, dtype), normals(rng, 60, LLAMA.hidden)
    rows = np.concatenate([causal(0, 0, 20), causal(1, 0, 20), causal(2, 4, 24, 4)])
    clean = layer.run(kernels, layer.cache(3, 24, cache_dtype), rows, x)
    reached = (rows[:, 0] == 1) & (rows[:, 1] >= 10)
    for value in VALUES:
        x[30, 50] = value
        y = layer.run(kernels, layer.cache(3, 24, cache_dtype), rows, x)
        assert not np.isfinite(y[reached]).any(), value
        assert np.array_equal(y[~reached], clean[~reached]), value
