"""A complete LLaMA or CLIP layer in one call: close to float64, bit-identical to the separate kernels."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernel_layers import (
    CLIP,
    CLIP_GELU,
    LLAMA,
    LLAMA_BIAS,
    LLAMA_ROTATED,
    ExactLayer,
    Layer,
    LayerShape,
    exact_result,
    run_in_parts,
)
from helpers.kernels import CACHE_DTYPES, DTYPES, causal, fastest_kind, normals, rounds_inputs, rows_of

from mindone.models.share4v.kernels.library import Library

SHAPES = {"llama": LLAMA, "llama with bias": LLAMA_BIAS, "clip": CLIP, "clip with gelu": CLIP_GELU}


def rows_for(shape: LayerShape, count: int) -> np.ndarray:
    """Return the rows of one sequence of `count` tokens: causal for LLaMA, bidirectional for CLIP."""
    if shape.is_rotary:
        return causal(0, 0, count)
    return rows_of(*((0, slot, 0, count) for slot in range(count)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("count", [1, 5, 37, 290])
def test_float_layers_match_float64(
    kernels: Library, rng: np.random.Generator, dtype: str, shape: LayerShape, count: int
) -> None:
    layer, x, rows = Layer.random(rng, shape, dtype), normals(rng, count, shape.hidden), rows_for(shape, count)
    expected = exact_result(layer, rows, x)
    error = np.abs(layer.run(kernels, layer.cache(1, count), rows, x) - expected)
    assert error.max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8-256", "int4-256"])
@pytest.mark.parametrize("count", [1, 37])
def test_a_hadamard_transform_before_the_last_matrix(
    kernels: Library, rng: np.random.Generator, dtype: str, count: int
) -> None:
    shape = LLAMA_ROTATED
    with fastest_kind(kernels):
        layer = Layer.random(rng, shape, dtype)
    x, rows = normals(rng, count, shape.hidden), rows_for(shape, count)
    expected = exact_result(layer, rows, x)
    error = np.abs(layer.run(kernels, layer.cache(1, count), rows, x) - expected)
    assert error.max() <= (1e-2 if rounds_inputs(dtype) else 2e-6) * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4", "int8-256", "int4-256"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("count", [1, 37, 290])
def test_layers_that_round_their_inputs_match_float64(
    kernels: Library, rng: np.random.Generator, dtype: str, shape: LayerShape, count: int
) -> None:
    """An input that differs in the last bit may round to another number: rarely, by 1/127 of its group's maximum."""
    layer, x, rows = Layer.random(rng, shape, dtype), normals(rng, count, shape.hidden), rows_for(shape, count)
    expected = exact_result(layer, rows, x)
    error = np.abs(layer.run(kernels, layer.cache(1, count), rows, x) - expected)
    assert np.median(error) <= 1e-6 * np.abs(expected).max()
    assert error.max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_layer_is_its_parts_to_the_bit(
    kernels: Library, rng: np.random.Generator, dtype: str, shape: LayerShape, cache_dtype: str
) -> None:
    layer, x = Layer.random(rng, shape, dtype, cache_layer=1), normals(rng, 50, shape.hidden)
    rows = rows_for(shape, 50)
    caches = [layer.cache(2, 50, cache_dtype) for _ in range(2)]
    y = layer.run(kernels, caches[0], rows, x)
    assert np.array_equal(y, run_in_parts(layer, kernels, caches[1], rows, x))
    assert np.array_equal(caches[0].memory, caches[1].memory)


@pytest.mark.parametrize("dtype", DTYPES)
def test_texts_of_a_batch_with_padding_and_rows_of_earlier_calls(
    kernels: Library, rng: np.random.Generator, dtype: str
) -> None:
    """Three sequences, two with left padding: one prefill and two decode steps."""
    layer, padding = Layer.random(rng, LLAMA_BIAS, dtype), (0, 3, 18)
    cache, exact = layer.cache(3, 24), ExactLayer(layer, 3, 24)
    prefill = np.concatenate([causal(text, padding[text], 20, padding[text]) for text in range(3)])
    for rows in (
        prefill,
        rows_of(*((text, 20, padding[text], 21) for text in (2, 0, 1))),
        rows_of((0, 21, 0, 22), (2, 21, 18, 22)),
    ):
        x = normals(rng, len(rows), LLAMA_BIAS.hidden)
        expected = exact(rows, x)
        error = np.abs(layer.run(kernels, cache, rows, x) - expected).max() / np.abs(expected).max()
        assert error <= (1e-2 if rounds_inputs(dtype) else 2e-6)


def test_wide_rows_of_several_chunks(kernels: Library, rng: np.random.Generator) -> None:
    """The kernels prepare 1024 columns at a time and multiply in blocks of 512 and 2048: use more of each."""
    shape = LayerShape(1100, 2, 1, 64, 2100)
    with fastest_kind(kernels):
        layer = Layer.random(rng, shape, "int4")
    x, rows = normals(rng, 14, 1100), causal(0, 0, 14)
    caches = [layer.cache(1, 14) for _ in range(2)]
    y = layer.run(kernels, caches[0], rows, x)
    assert np.array_equal(y, run_in_parts(layer, kernels, caches[1], rows, x))
