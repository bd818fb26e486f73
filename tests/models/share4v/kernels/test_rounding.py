"""int4 super-blocks: integers that fit int8, and scales that suit the inputs."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernels import in_groups, normals, stored_integers, stored_weight

from mindone.models.share4v.kernels.library import KernelError, Library
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec, RoundedRows

SIZES = [(1, 1), (16, 256), (17, 33), (40, 576), (5, 300), (129, 250)]


def dequantized(codes: np.ndarray, pairs: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return one super-block's weights, float64 [R, K]."""
    s, z = (pairs[..., i].astype(np.float64).repeat(32, 1)[:, : codes.shape[1]] for i in (0, 1))
    return scales.astype(np.float64)[:, None] * (s * (codes.astype(np.float64) - 8) + z)


def block_of(weight: np.ndarray, importance: np.ndarray | None = None) -> tuple[np.ndarray, BlockSpec]:
    writer = BlockWriter(BlockSpec((MatrixSpec(*weight.shape, "int4-256"),)))
    writer.matrix(0, weight, importance=importance)
    return writer.block, writer.spec


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [0.0, 5.0, -300.0])
def test_integers_fit_int8_and_weights_are_near(
    kernels: Library, rng: np.random.Generator, size: tuple[int, int], offset: float
) -> None:
    weight = (rng.standard_t(4, size) + offset).astype(np.float32)
    block, spec = block_of(weight)
    stored, groups = stored_integers(block, spec, 0), in_groups(weight).astype(np.float64)
    assert np.abs(stored.whole).max() <= 127
    span = groups.max(-1) - groups.min(-1)
    within = np.abs(stored.whole * stored.scales[..., None] - groups)[:, : weight.shape[1] // 32]
    # Half of a step of 1/15 of the range, or the resolution of an integer scale for the super-block's largest weight.
    coarse = np.abs(weight).max() / 127 * 4
    assert (within <= (span[:, : weight.shape[1] // 32, None] / 6 + coarse)).all()


def test_constant_rows_and_zeros(kernels: Library) -> None:
    weight = np.zeros((4, 300), np.float32)
    weight[1], weight[2], weight[3, 17] = 3.0, -1e-3, 1.0
    block, spec = block_of(weight)
    assert np.allclose(stored_weight(block, spec, 0), weight, rtol=5e-3, atol=1e-2)
    assert not stored_weight(block, spec, 0)[0].any()


def test_importance_moves_the_error_to_where_inputs_are_small(kernels: Library, rng: np.random.Generator) -> None:
    weight, inputs = normals(rng, 64, 576), np.exp(rng.normal(0, 1.5, 576)).astype(np.float32)
    plain, weighted = (block_of(weight, importance) for importance in (None, inputs))
    errors = [((stored_weight(*one, 0) - weight) ** 2 @ inputs).mean() for one in (plain, weighted)]
    assert errors[1] < 0.75 * errors[0]


def test_asymmetric_weights_are_rounded_better_than_by_the_symmetric_type(
    kernels: Library, rng: np.random.Generator
) -> None:
    weight = rng.standard_gamma(2, (32, 512)).astype(np.float32)
    errors = []
    for dtype in ("int4", "int4-256"):
        writer = BlockWriter(BlockSpec((MatrixSpec(32, 512, dtype),)))
        writer.matrix(0, weight)
        errors.append(((stored_weight(writer.block, writer.spec, 0) - weight) ** 2).mean())
    assert errors[1] < 0.5 * errors[0]


def test_rounded_rows_are_written_as_packing_writes_them(kernels: Library, rng: np.random.Generator) -> None:
    weight, importance = normals(rng, 70, 576), np.ones(576, np.float32)
    parts = [
        kernels.round_super_block(np.ascontiguousarray(weight[:, k : k + 256]), importance[k : k + 256])
        for k in (0, 256, 512)
    ]
    codes, pairs, scales = (
        np.concatenate([part[0] for part in parts], 1),
        np.concatenate([part[1] for part in parts], 1),
        np.stack([part[2] for part in parts], 1),
    )
    expected, spec = block_of(weight)
    writer = BlockWriter(spec)
    writer.codes(0, RoundedRows(codes[:32], pairs[:32], scales[:32]))
    writer.codes(0, RoundedRows(codes[32:], pairs[32:], scales[32:]), 32)
    assert np.array_equal(writer.block, expected)
    with pytest.raises(ValueError, match="cannot be written at row 8"):
        writer.codes(0, RoundedRows(codes[32:], pairs[32:], scales[32:]), 8)


def test_every_kind_of_kernels_rounds_alike(kernels: Library, kind: str, rng: np.random.Generator) -> None:
    weight, importance = normals(rng, 33, 256), rng.uniform(0.1, 4, 256).astype(np.float32)
    loss = []
    for one in (kind, "portable"):
        kernels.select(one)
        loss.append(((dequantized(*kernels.round_super_block(weight, importance)) - weight) ** 2 @ importance).sum())
    assert abs(loss[0] / loss[1] - 1) < 0.01


def feedback_of(rng: np.random.Generator, columns: int) -> np.ndarray:
    """Return the transpose of a unit lower triangular matrix."""
    return (np.triu(0.1 * rng.standard_normal((columns, columns)), 1) + np.eye(columns)).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_feedback_is_the_error_of_columns_behind(
    kernels: Library, rng: np.random.Generator, size: tuple[int, int]
) -> None:
    """The codes are those nearest to what the known errors leave, column by column in float64."""
    weight, columns = normals(rng, *size)[:, :256], min(size[1], 256)
    feedback, importance = feedback_of(rng, columns), rng.uniform(0.5, 2, columns).astype(np.float32)
    values = (weight @ feedback.T).astype(np.float32)
    codes, pairs, scales = kernels.round_super_block(values, importance, feedback)
    assert np.allclose(values, dequantized(codes, pairs, scales), rtol=1e-6)
    step, offset = (
        scales.astype(np.float64)[:, None] * pairs[..., part].astype(np.float64).repeat(32, 1)[:, :columns]
        for part in (0, 1)
    )
    left = (weight.astype(np.float64) - values) @ feedback.T.astype(np.float64)  # what each column leaves
    nearest = np.rint((left + values - offset) / step).clip(-8, 7) * step + offset
    assert (np.abs(nearest - values) <= 1e-3 * np.abs(step)).mean() > 0.99


def test_feedback_leaves_less_error(kernels: Library, rng: np.random.Generator) -> None:
    """Less than the columns rounded by themselves, and less than scales that were found without feedback."""
    weight, importance = normals(rng, 64, 256), np.ones(256, np.float32)
    feedback = feedback_of(rng, 256)

    def error(values: np.ndarray) -> float:
        return float((((weight - values) @ feedback.T) ** 2).sum())

    alone = dequantized(*kernels.round_super_block(weight, importance))
    fed = (weight @ feedback.T).astype(np.float32)
    kernels.round_super_block(fed, importance, feedback)
    assert error(fed) < 0.5 * error(alone)
    independent = weight.copy()
    kernels.round_super_block(independent, importance, np.eye(256, dtype=np.float32))
    assert ((independent - weight) ** 2).sum() < 1.01 * ((alone - weight) ** 2).sum()


@pytest.mark.parametrize("size", SIZES)
def test_codes_are_refined_one_after_the_other(
    kernels: Library, rng: np.random.Generator, size: tuple[int, int]
) -> None:
    """As coordinate descent in float64 does it."""
    weight, columns = normals(rng, *size)[:, :256].copy(), min(size[1], 256)
    factor = feedback_of(rng, columns).astype(np.float64)
    moment = factor @ factor.T
    codes, pairs, scales = kernels.round_super_block(weight, np.ones(columns, np.float32))
    step = scales.astype(np.float64)[:, None] * pairs[..., 0].astype(np.float64).repeat(32, 1)[:, :columns]
    errors = weight - dequantized(codes, pairs, scales)
    before, expected, changes = errors @ moment, codes - 8.0, np.zeros_like(errors)
    gradient = before.copy()
    for k in range(columns):
        best = np.rint(expected[:, k] + gradient[:, k] / moment[k, k] / step[:, k]).clip(-8, 7)
        changes[:, k] = (expected[:, k] - best) * step[:, k]
        expected[:, k] = best
        gradient += changes[:, k, None] * moment[k]
    given = before.astype(np.float32)
    kernels.refine_super_block(given, moment.astype(np.float32), codes, pairs, scales)
    assert (codes == expected + 8).mean() > 0.99  # a tie in float32 changes what follows
    assert np.allclose(errors + given, weight - dequantized(codes, pairs, scales), atol=1e-5)
    with pytest.raises(KernelError, match="shapes"):
        kernels.refine_super_block(given, moment.astype(np.float32), codes[:, :0].copy(), pairs, scales)


def test_wrong_shapes_are_refused(kernels: Library, rng: np.random.Generator) -> None:
    weight, importance = normals(rng, 2, 257), np.ones(257, np.float32)
    with pytest.raises(KernelError, match="shapes"):
        kernels.round_super_block(weight, importance)
    with pytest.raises(KernelError, match="shapes"):
        kernels.round_super_block(weight[:, :32].copy(), importance)
    with pytest.raises(KernelError, match="shapes"):
        kernels.round_super_block(weight[:, :32].copy(), importance[:32], np.eye(33, dtype=np.float32))
    with pytest.raises(KernelError, match="dtype"):
        kernels.round_super_block(weight[:, :32].astype(np.float64), importance[:32])
    writer = BlockWriter(BlockSpec((MatrixSpec(2, 257, "int4-256"),)))
    with pytest.raises(KernelError, match="shapes"):
        writer.matrix(0, weight, importance=importance[:3])
