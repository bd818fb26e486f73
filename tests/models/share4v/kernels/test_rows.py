"""Row-wise operations: norms, rotary embedding, activations, and rows of the embedding table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.kernels import (
    UNIT,
    activation,
    erf,
    norm,
    normals,
    rotary_tables,
    rotate,
    run_activation,
    run_norm,
    to_bfloat16,
)

from mindone.models.share4v.kernels.library import Library
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec, NormSpec

# Every float32 that a formula may stumble on, and both sides of where e^x leaves float32 (88.7) and exp is cut (87.3).
EDGES = [0.0, 1e-45, 1e-40, 1.2e-38, 1e-30, 1e-8, 1.0, 5.0, 9.0, 16.0, 51.3, 51.9, 87.3, 87.4, 88.0, 88.37, 88.4, 88.8]
EXTREMES = np.array([sign * edge for edge in [*EDGES, 104.0, 1e4, 1e30, 3.4e38] for sign in (1, -1)], np.float32)


@pytest.mark.parametrize("size", [1, 15, 16, 33, 100, 4097])
@pytest.mark.parametrize("name", ["rms", "layer"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_norms(kernels: Library, rng: np.random.Generator, name: str, size: int, bias: bool, offset: float) -> None:
    spec = NormSpec(name, size, 1e-5, bias)
    x = (normals(rng, 5, size) + np.float32(offset)) * np.array([[1], [1e-4], [1e4], [1e-20], [0]], np.float32)
    weight, shift = normals(rng, size), normals(rng, size) if bias else None
    expected = norm(spec, weight, shift, x)
    # Sums of size / 16 terms in 16 lanes; the mean's error counts in units of what the row is divided by.
    centred = x.astype(np.float64) - (x.astype(np.float64).mean(-1, keepdims=True) if name == "layer" else 0)
    divisor = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    reach = (np.abs(centred) + np.abs(x).mean(-1, keepdims=True)) / divisor
    tolerance = (size / 16 + 12) * UNIT * (np.abs(weight) * reach + (0 if shift is None else np.abs(shift))) + 1e-37
    assert (np.abs(run_norm(kernels, spec, weight, shift, x) - expected) <= tolerance).all()


def test_layer_norm_of_equal_values_is_its_bias(kernels: Library, rng: np.random.Generator) -> None:
    weight, bias, x = normals(rng, 48), normals(rng, 48), np.full((2, 48), 0.75, np.float32)
    assert np.array_equal(run_norm(kernels, NormSpec("layer", 48, 1e-5, True), weight, bias, x), np.stack([bias, bias]))


@pytest.mark.parametrize("size", [2, 6, 20, 32, 34, 128])
def test_rotary(kernels: Library, rng: np.random.Generator, size: int) -> None:
    x = normals(rng, 9, size)
    tables = rotary_tables(np.array([0, 1, 2, 3, 10, 100, 1000, 2047, 4095]), size)
    expected = rotate(x.astype(np.float64), *tables)
    reach = rotate(np.abs(x), np.abs(tables[0]), np.abs(tables[1])).astype(np.float64)
    reach = np.maximum(np.abs(reach), np.abs(x).max(-1, keepdims=True) * 2)
    turned = kernels.rotary(x, *tables)
    assert (np.abs(turned - expected) <= 3 * UNIT * reach).all()
    assert np.array_equal(turned[0], x[0])  # position 0 does not turn


def exact_gate(x: np.ndarray, factor: float) -> np.ndarray:
    """x / (1 + exp(-factor x)) with the product rounded to float32, as the kernels do; exp magnifies that rounding."""
    turned = (x * np.float32(-factor)).astype(np.float64)
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(turned))


@pytest.mark.parametrize(("name", "factor"), [("quick_gelu", 1.702), ("gated_silu", 1.0)])
def test_the_exponential_is_right_to_a_few_units(
    kernels: Library, rng: np.random.Generator, name: str, factor: float
) -> None:
    """For very negative x, x * sigmoid(x) is x exp(x), so its relative error is that of the exponential."""
    x = np.concatenate([np.linspace(-87.2, 87.2, 20011), rng.uniform(-1e-3, 1e-3, 2000)]) / factor
    x = x.astype(np.float32)
    ones = np.ones_like(x) if name == "gated_silu" else None
    exact = exact_gate(x, factor)
    error = np.abs(run_activation(kernels, name, x, ones) - exact)
    assert (error <= 8 * UNIT * np.abs(exact)).all()


@pytest.mark.parametrize("name", ["gelu", "quick_gelu", "gated_silu"])
def test_extreme_inputs(kernels: Library, name: str) -> None:
    up = np.full_like(EXTREMES, 0.5) if name == "gated_silu" else None
    y = run_activation(kernels, name, EXTREMES, up)
    assert np.isfinite(y).all()
    x = EXTREMES.astype(np.float64)
    exact = activation(name, x if up is None else np.stack((x, np.full_like(x, 0.5)), 1))
    exact = exact[:, 0] if exact.ndim == 2 else exact
    # An exponential stops at e^88.37 instead of growing on, so that -x / e^x ends at |x| * 4.2e-39 and not at zero.
    slack = (4 * UNIT if name == "gelu" else 0) * np.abs(x) + 1e-38 * np.abs(x) + 3e-45
    assert (np.abs(y - exact) <= 2e-6 * np.abs(exact) + slack).all()


def test_gelu_is_the_one_with_erf(kernels: Library, rng: np.random.Generator) -> None:
    x = np.linspace(-6, 6, 3001).astype(np.float32)
    exact = 0.5 * x.astype(np.float64) * (1 + erf(x.astype(np.float64) / math.sqrt(2)))
    assert (np.abs(run_activation(kernels, "gelu", x) - exact) <= 4 * UNIT * np.abs(x)).all()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
def test_gated_silu_multiplies_by_the_other_half(kernels: Library, rng: np.random.Generator, count: int) -> None:
    gate, up = normals(rng, count), normals(rng, count)
    exact = activation("gated_silu", np.concatenate((gate, up)).astype(np.float64))
    assert (np.abs(run_activation(kernels, "gated_silu", gate, up) - exact) <= 9 * UNIT * np.abs(exact)).all()


@pytest.mark.parametrize("name", ["gelu", "quick_gelu", "gated_silu"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_keep_what_is_not_finite(kernels: Library, name: str, value: float) -> None:
    x = np.ones(20, np.float32)
    x[[3, 18]] = value
    y = run_activation(kernels, name, x, np.ones_like(x))
    assert not np.isfinite(y[[3, 18]]).any()
    assert np.isfinite(np.delete(y, [3, 18])).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [1, 15, 16, 40, 129])
def test_embedding_gathers_rows(kernels: Library, rng: np.random.Generator, dtype: str, size: int) -> None:
    weight = normals(rng, 50, size)
    writer = BlockWriter(BlockSpec((MatrixSpec(50, size, dtype),), is_table=True))
    writer.matrix(0, weight[:32])
    writer.matrix(0, weight[32:], 32)
    ids = np.array([0, 49, 7, 7, 31, 32], np.int32)
    y = kernels.call("share4v_embedding", [ids, writer.block], np.zeros((6, size), np.float32))
    stored = to_bfloat16(weight) if dtype == "bfloat16" else weight.astype(dtype)
    assert np.array_equal(y, stored.astype(np.float32)[ids])
