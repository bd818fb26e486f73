"""Weights in blocks: what goes in comes out, rounded as far as the type says and no further, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernels import DTYPES, in_groups, normals, stored_integers, stored_weight

from mindone.models.share4v.kernels.library import Library
from mindone.models.share4v.kernels.packing import (
    HEADER_BYTES,
    BlockSpec,
    BlockWriter,
    MatrixSpec,
    NormSpec,
    block_bytes,
    check_block,
    header_of,
    read_vector,
    unpack_matrix,
)

SIZES = [(1, 1), (16, 32), (17, 33), (40, 31), (129, 100)]


def packed(weight: np.ndarray, dtype: str) -> tuple[np.ndarray, BlockSpec]:
    """Return a block of one matrix."""
    writer = BlockWriter(BlockSpec((MatrixSpec(*weight.shape, dtype),)))
    writer.matrix(0, weight)
    return writer.block, writer.spec


def squared_errors(groups: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the squared error of each int4 group [..., 32] when rounded by its scale."""
    scales = scales[..., None]
    whole = np.clip(np.rint(groups / np.where(scales == 0, 1, scales)), -8, 7)
    return ((groups - whole * scales) ** 2).sum(-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "source"), [("float32", "float32"), ("float16", "float16"), ("float32", "float16")])
def test_floats_come_back_exactly(
    kernels: Library, rng: np.random.Generator, dtype: str, source: str, size: tuple[int, int]
) -> None:
    weight = normals(rng, *size).astype(source)
    weight.flat[0] = 6e-8  # a denormal of float16
    block, spec = packed(weight, dtype)
    assert np.array_equal(unpack_matrix(block, spec, 0), weight.astype(np.float32))
    assert np.array_equal(stored_weight(block, spec, 0), weight.astype(np.float64))


def test_every_float16_comes_back(kernels: Library) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    weight = bits[(bits & 0x7C00) != 0x7C00].view(np.float16).reshape(-1, 62)
    block, spec = packed(weight, "float16")
    assert np.array_equal(unpack_matrix(block, spec, 0).astype(np.float16).view(np.uint16), weight.view(np.uint16))


def test_float32_is_rounded_to_float16_as_numpy_does(kernels: Library, rng: np.random.Generator) -> None:
    weight = (normals(rng, 64, 100) * 10.0 ** rng.integers(-9, 4, (64, 100))).astype(np.float32)
    weight[0, :4] = 1 + 2.0**-11, 1 + 3 * 2.0**-11, 65504, 2.0**-25  # ties go to even
    block, spec = packed(weight, "float16")
    assert np.array_equal(unpack_matrix(block, spec, 0), weight.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [1.0, 1e4, 1e-4, 1e-7])
def test_int8_is_off_by_half_a_step_at_most(
    kernels: Library, rng: np.random.Generator, size: tuple[int, int], factor: float
) -> None:
    weight = (normals(rng, *size) * factor).astype(np.float32)
    block, spec = packed(weight, "int8")
    stored, groups = stored_integers(block, spec, 0), in_groups(weight)
    ideal = np.abs(groups).max(-1).astype(np.float64) / 127
    assert np.array_equal(stored.scales, (np.abs(groups).max(-1) / np.float32(127)).astype(np.float16))
    slack = 127 * np.abs(stored.scales - ideal)  # what the scale's own rounding takes from the largest weight
    error = np.abs(stored.whole * stored.scales[..., None] - groups)
    assert (error <= (stored.scales / 2 + slack)[..., None] * (1 + 1e-5)).all()
    assert np.abs(stored.whole).max() <= 127


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [1.0, 1e4, 1e-3])
def test_int4_scale_is_no_worse_than_the_plain_rule(
    kernels: Library, rng: np.random.Generator, size: tuple[int, int], factor: float
) -> None:
    """The plain rule: the weight of largest magnitude becomes -8."""
    weight = (rng.standard_t(4, size) * factor).astype(np.float32)
    block, spec = packed(weight, "int4")
    stored, groups = stored_integers(block, spec, 0), in_groups(weight).astype(np.float64)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    plain = squared_errors(groups, (-largest / 8).astype(np.float16).astype(np.float64))
    error = ((stored.whole * stored.scales[..., None] - groups) ** 2).sum(-1)
    assert (error <= plain * (1 + 1e-5)).all()
    assert error.sum() < 0.95 * plain.sum() or weight.size == 1  # and it pays
    assert (error <= squared_errors(groups, stored.scales) * (1 + 1e-5) + 1e-30).all()  # each to its nearest


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacked_is_what_lies_in_memory(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    block, spec = packed(normals(rng, 37, 75), dtype)
    assert np.array_equal(unpack_matrix(block, spec, 0), stored_weight(block, spec, 0).astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_kernels_packs_the_same_bytes(
    kernels: Library, kind: str, rng: np.random.Generator, dtype: str
) -> None:
    weight = (rng.standard_t(3, (50, 77)) * 0.1).astype(np.float32)
    blocks = []
    for one in (kind, "portable"):
        kernels.select(one)
        blocks.append(packed(weight, dtype)[0])
    # int4's scale is the best of sixteen, and the portable kernels' sums of squares are rounded more often.
    different = np.count_nonzero(blocks[0] != blocks[1])
    assert different <= (0.02 * len(blocks[0]) if dtype.startswith("int4") else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_table", [False, True], ids=["panels", "table"])
def test_bfloat16_is_float32_cut_short(kernels: Library, rng: np.random.Generator, dtype: str, is_table: bool) -> None:
    if is_table and dtype.startswith("int"):
        dtype = "float32"
    bits = (normals(rng, 20, 45).view(np.uint32) >> 16).astype(np.uint16)
    spec = BlockSpec((MatrixSpec(20, 45, dtype),), is_table=is_table)
    blocks = []
    for weight in (bits, (bits.astype(np.uint32) << 16).view(np.float32)):
        writer = BlockWriter(spec)
        writer.matrix(0, weight)
        blocks.append(writer.block)
    assert np.array_equal(*blocks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_in_pieces_is_packing_at_once(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    weight = normals(rng, 75, 50)
    spec = BlockSpec((MatrixSpec(16, 8, "int8", bias=True), MatrixSpec(75, 50, dtype, bias=True)))
    whole, pieces = BlockWriter(spec), BlockWriter(spec)
    whole.matrix(1, weight)
    for first, end in ((32, 64), (0, 32), (64, 75)):
        pieces.matrix(1, weight[first:end], first)
    assert np.array_equal(whole.block, pieces.block)
    assert not unpack_matrix(whole.block, spec, 0).any()


@pytest.mark.parametrize("is_table", [False, True], ids=["panels", "table"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_or_too_large_is_refused(
    kernels: Library, rng: np.random.Generator, dtype: str, is_table: bool
) -> None:
    if is_table and dtype.startswith("int"):
        pytest.skip("a table holds floats")
    integers = {"int8": 128, "int8-256": 128, "int4": 8.8, "int4-256": 128}
    beyond = {"float32": np.inf, "float16": 65600.0, "bfloat16": 3.397e38}.get(dtype) or 65504.0 * integers[dtype]
    weight = normals(rng, 40, 33)
    for value in (np.nan, np.inf, -np.inf, beyond):
        weight[39, 32] = value
        writer = BlockWriter(BlockSpec((MatrixSpec(40, 33, dtype),), is_table=is_table))
        with pytest.raises(OverflowError, match="not finite, or too large"):
            writer.matrix(0, weight)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_largest_that_fit(kernels: Library, dtype: str) -> None:
    factors = {"float16": 1, "bfloat16": 5.17e33, "int8": 127, "int8-256": 127, "int4": 6, "int4-256": 60}
    largest = 65504.0 * factors[dtype]
    weight = np.full((3, 40), -largest, np.float32)
    block, spec = packed(weight, dtype)
    assert np.allclose(unpack_matrix(block, spec, 0), weight, rtol=4e-3 if dtype == "bfloat16" else 2e-3)


@pytest.mark.parametrize(
    ("shape", "first"),
    [((32, 40), 0), ((48, 39), 0), ((48, 41), 0), ((16, 40), 48), ((16, 40), 8), ((49, 40), 0), ((16, 40), -16)],
)
def test_weights_of_another_shape_are_refused(
    kernels: Library, rng: np.random.Generator, shape: tuple[int, int], first: int
) -> None:
    writer = BlockWriter(BlockSpec((MatrixSpec(48, 40, "int8"),)))
    if shape == (32, 40):  # fits: some of the rows
        writer.matrix(0, normals(rng, *shape), first)
        return
    with pytest.raises(ValueError, match="cannot be written at row"):
        writer.matrix(0, normals(rng, *shape), first)
    with pytest.raises(ValueError, match="cannot be written at row"):
        writer.matrix(0, np.zeros(40, np.float32))


def test_weights_of_another_dtype_are_refused(kernels: Library) -> None:
    writer = BlockWriter(BlockSpec((MatrixSpec(48, 40, "int8"),)))
    with pytest.raises(ValueError, match="dtype float64"):
        writer.matrix(0, np.zeros((48, 40)))


def test_vectors_come_back_and_leave_the_rest_alone(kernels: Library, rng: np.random.Generator) -> None:
    spec = BlockSpec((MatrixSpec(20, 40, "int4", bias=True),), (NormSpec("layer", 40, 1e-5, bias=True),))
    writer, weight = BlockWriter(spec), normals(rng, 20, 40)
    writer.matrix(0, weight)
    before = unpack_matrix(writer.block, spec, 0)
    vectors = {("matrices", "bias"): 20, ("norms", "weight"): 40, ("norms", "bias"): 40}
    values = {place: normals(rng, size) for place, size in vectors.items()}
    for (kind, field), vector in values.items():
        writer.vector(kind, 0, field, vector)
    for (kind, field), vector in values.items():
        assert np.array_equal(read_vector(writer.block, kind, 0, field, len(vector)), vector)
    assert np.array_equal(unpack_matrix(writer.block, spec, 0), before)
    assert np.array_equal(writer.block[:HEADER_BYTES], header_of(spec))


@pytest.mark.parametrize(("size", "first"), [(21, 0), (20, 1), (1, -1)])
def test_vectors_of_another_size_are_refused(kernels: Library, size: int, first: int) -> None:
    writer = BlockWriter(BlockSpec((MatrixSpec(20, 40, "int4", bias=True),)))
    with pytest.raises(ValueError):
        writer.vector("matrices", 0, "bias", np.zeros(size, np.float32), first)


def test_a_bias_that_the_block_does_not_have_is_refused(kernels: Library) -> None:
    writer = BlockWriter(BlockSpec((MatrixSpec(20, 40, "int4"),)))
    with pytest.raises(ValueError):
        writer.vector("matrices", 0, "bias", np.zeros(20, np.float32))


@pytest.mark.parametrize("change", [lambda b: b[:-64], lambda b: b[:0], lambda b: np.roll(b, 1)])
def test_a_block_of_another_layout_is_refused(kernels: Library, rng: np.random.Generator, change: object) -> None:
    block, spec = packed(normals(rng, 20, 40), "int8")
    check_block(block, spec, "good")
    assert len(block) == block_bytes(spec)
    with pytest.raises(ValueError, match="bad is not the block"):
        check_block(change(block), spec, "bad")  # type: ignore[operator]
