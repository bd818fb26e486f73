"""Products with packed weights against float64 sums, for every dtype and for sizes that fill no tile."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernels import (
    DTYPES,
    UNIT,
    activation,
    fastest_kind,
    inputs_of,
    linear_block,
    linear_tolerance,
    norm,
    normals,
    rounded_inputs,
    rounds_inputs,
    run_linear,
    run_norm,
    stored_weight,
)

from mindone.models.share4v.kernels.library import Library
from mindone.models.share4v.kernels.packing import NormSpec, read_vector

# Outputs, inputs, rows: below, at and beyond 16 outputs, 128 of a thread, 32 inputs of a group, 512 and 2048 of a block
# of inputs, 6, 12 and 32 rows of a tile, and 256 of a pass.
SHAPES = [
    (1, 1, 1),
    (16, 32, 1),
    (17, 31, 2),
    (40, 70, 3),
    (15, 33, 7),
    (145, 64, 5),
    (48, 513, 12),
    (33, 97, 13),
    (130, 300, 31),
    (31, 2085, 14),
    (64, 1056, 33),
    (50, 65, 96),
    (20, 45, 257),
    (257, 40, 300),
]


def expected_of(x: np.ndarray, weight: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return x W^T and its tolerance; some types round the inputs."""
    inputs = inputs_of(x, dtype)
    return inputs @ weight.T, linear_tolerance(inputs, weight, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs", "rows"), SHAPES)
def test_products_match_float64(
    kernels: Library, rng: np.random.Generator, dtype: str, outputs: int, inputs: int, rows: int
) -> None:
    x = normals(rng, rows, inputs) * rng.uniform(0.01, 100, (rows, 1)).astype(np.float32)
    block, spec = linear_block(rng, normals(rng, outputs, inputs), dtype)
    expected, tolerance = expected_of(x, stored_weight(block, spec, 0), dtype)
    assert (np.abs(run_linear(kernels, x, block, outputs) - expected) <= tolerance).all()


@pytest.mark.parametrize(("outputs", "inputs", "rows"), [(33, 576, 1), (20, 300, 5), (130, 2100, 9), (48, 1536, 40)])
def test_int4_super_blocks_with_inputs_in_groups_of_32(
    kernels: Library, rng: np.random.Generator, outputs: int, inputs: int, rows: int
) -> None:
    x = normals(rng, rows, inputs)
    x[:, 7] *= 1000  # an outlier that spoils its group only
    with fastest_kind(kernels):
        block, spec = linear_block(rng, normals(rng, outputs, inputs), "int4-256", group=32)
    rounded = rounded_inputs(x, 32)
    weight = stored_weight(block, spec, 0)
    error = np.abs(run_linear(kernels, x, block, outputs) - rounded @ weight.T)
    assert (error <= linear_tolerance(rounded, weight, "int4-256")).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_index_names_rows_in_any_order_and_skips_idle_ones(
    kernels: Library, rng: np.random.Generator, dtype: str
) -> None:
    x = normals(rng, 9, 50)
    block, spec = linear_block(rng, normals(rng, 37, 50), dtype, bias=True)
    everything = run_linear(kernels, x, block, 37)
    index = np.array([8, -1, 0, 0, 3, -1, -7, 8, 5], np.int32)
    chosen = run_linear(kernels, x, block, 37, index)
    busy = index >= 0
    assert np.array_equal(chosen[busy], everything[index[busy]])
    expected, tolerance = expected_of(x, stored_weight(block, spec, 0), dtype)
    expected += read_vector(block, "matrices", 0, "bias", 37)
    assert (np.abs(everything - expected) <= tolerance + UNIT * np.abs(expected)).all()


@pytest.mark.parametrize("rows", [300, 700])
def test_many_idle_rows_among_busy_ones(kernels: Library, rng: np.random.Generator, rows: int) -> None:
    x = normals(rng, 40, 33)
    block, spec = linear_block(rng, normals(rng, 18, 33), "float32")
    index = rng.integers(-40, 40, rows).astype(np.int32)
    chosen, busy = run_linear(kernels, x, block, 18, index), index >= 0
    expected, tolerance = expected_of(x[index[busy]], stored_weight(block, spec, 0), "float32")
    assert (np.abs(chosen[busy] - expected) <= tolerance).all()


def test_no_busy_row_and_no_row(kernels: Library, rng: np.random.Generator) -> None:
    x = normals(rng, 3, 20)
    block, _ = linear_block(rng, normals(rng, 5, 20), "int4")
    assert run_linear(kernels, x, block, 5, [-1, -1]).shape == (2, 5)
    assert run_linear(kernels, x, block, 5, []).shape == (0, 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gelu", "quick_gelu"])
def test_bias_and_activation(kernels: Library, rng: np.random.Generator, dtype: str, name: str) -> None:
    x = normals(rng, 35, 90) * np.float32(0.3)
    block, spec = linear_block(rng, normals(rng, 53, 90), dtype, bias=True, activation=name)
    before, tolerance = expected_of(x, stored_weight(block, spec, 0), dtype)
    before = before + read_vector(block, "matrices", 0, "bias", 53)
    # Neither is steeper than 1.13; each rounds a few times, and 1 + erf loses what it cancels.
    slack = 1.13 * (tolerance + UNIT * np.abs(before)) + 8 * UNIT * np.abs(before)
    assert (np.abs(run_linear(kernels, x, block, 53) - activation(name, before)) <= slack).all()


NORMS = [NormSpec("rms", 75, 1e-5), NormSpec("layer", 75, 1e-5), NormSpec("layer", 75, 1e-5, bias=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", NORMS, ids=["rms", "layer", "layer and bias"])
def test_norm_in_front(kernels: Library, rng: np.random.Generator, dtype: str, spec: NormSpec) -> None:
    x, weight = normals(rng, 21, 75) + np.float32(0.5), normals(rng, 40, 75)
    block, block_spec = linear_block(rng, weight, dtype, norm_spec=spec)
    scale = read_vector(block, "norms", 0, "weight", 75)
    bias = read_vector(block, "norms", 0, "bias", 75) if spec.bias else None
    y = run_linear(kernels, x, block, 40)
    alone = linear_block(rng, weight, dtype)[0]
    assert np.array_equal(y, run_linear(kernels, run_norm(kernels, spec, scale, bias, x), alone, 40))
    if not rounds_inputs(dtype):  # which may turn the norm's last bit into a step
        normal = norm(spec, scale, bias, x)
        stored = stored_weight(block, block_spec, 0)
        tolerance = linear_tolerance(normal, stored, dtype) + 12 * UNIT * (np.abs(normal) + 1) @ np.abs(stored).T
        assert (np.abs(y - normal @ stored.T) <= tolerance).all()


@pytest.mark.parametrize("dtype", ["int8", "int4", "int8-256", "int4-256"])
def test_groups_of_very_different_sizes(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    """A scale that is applied to a neighbour's group shows at once."""
    sizes = 10.0 ** rng.integers(-3, 4, (2, 1, 5))
    x = (normals(rng, 14, 160).reshape(14, 5, 32) * sizes[0][..., None]).reshape(14, 160).astype(np.float32)
    weight = (normals(rng, 49, 160).reshape(49, 5, 32) * sizes[1][..., None]).reshape(49, 160).astype(np.float32)
    x[:, 32:64] = 0
    weight[:, 96:128] = 0
    block, spec = linear_block(rng, weight, dtype)
    expected, tolerance = expected_of(x, stored_weight(block, spec, 0), dtype)
    assert (np.abs(run_linear(kernels, x, block, 49) - expected) <= tolerance).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_too_small_or_large_for_a_quotient(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    """127 / 1e-40 is infinite in float32; such a group is as good as zero, and no NaN comes of it."""
    x = np.stack([np.full(40, size, np.float32) for size in (0.0, 1e-45, 1e-40, 1e-30, 1e30)])
    weight = normals(rng, 20, 40)
    block, spec = linear_block(rng, weight, dtype)
    expected, tolerance = expected_of(x, stored_weight(block, spec, 0), dtype)
    y = run_linear(kernels, x, block, 20)
    assert np.isfinite(y).all()
    assert (np.abs(y - expected) <= tolerance).all()
