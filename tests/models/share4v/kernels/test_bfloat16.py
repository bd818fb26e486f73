"""bfloat16: a checkpoint's bits are kept, inputs are rounded to the nearest, and sums have the documented order."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernels import GROUP, linear_block, normals, run_linear, stored_weight, to_bfloat16

from mindone.models.share4v.kernels.library import Library
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec, unpack_matrix


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("is_table", [False, True], ids=["panels", "table"])
def test_every_bfloat16_comes_back(kernels: Library, is_table: bool) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[(bits & 0x7F80) != 0x7F80].reshape(-1, 85)  # the finite ones
    for weight in (bits, widened(bits)):
        writer = BlockWriter(BlockSpec((MatrixSpec(*bits.shape, "bfloat16"),), is_table=is_table))
        writer.matrix(0, weight)
        assert np.array_equal(unpack_matrix(writer.block, writer.spec, 0).view(np.uint32) >> 16, bits)


@pytest.mark.parametrize("is_table", [False, True], ids=["panels", "table"])
def test_other_weights_are_rounded_to_the_nearest(kernels: Library, rng: np.random.Generator, is_table: bool) -> None:
    weight = (normals(rng, 33, 70) * 10.0 ** rng.integers(-30, 30, (33, 70))).astype(np.float32)
    weight[0, :4] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 3.3961e38  # ties go to even; the last one still fits
    writer = BlockWriter(BlockSpec((MatrixSpec(33, 70, "bfloat16"),), is_table=is_table))
    writer.matrix(0, weight)
    assert np.array_equal(unpack_matrix(writer.block, writer.spec, 0), to_bfloat16(weight))
    if not is_table:
        assert np.array_equal(stored_weight(writer.block, writer.spec, 0), to_bfloat16(weight))


@pytest.mark.parametrize(("outputs", "columns", "rows"), [(40, 70, 1), (17, 1060, 3), (150, 33, 14), (20, 1100, 40)])
def test_sums_have_the_documented_order(
    kernels: Library, kind: str, rng: np.random.Generator, outputs: int, columns: int, rows: int
) -> None:
    """A product of two bfloat16 is exact in float32, so NumPy's sums are those of fused multiply-adds.

    vdpbf16ps adds the odd column of a pair, then the even one. tdpbf16ps adds the even columns of 32 and the odd ones
    to sums of their own, and both to the result (Intel's instruction set reference).
    """
    x, weight = normals(rng, rows, columns), normals(rng, outputs, columns)
    block, _ = linear_block(rng, weight, "bfloat16")
    groups = -(-columns // GROUP)
    products = np.zeros((rows, outputs, groups * GROUP), np.float32)
    products[..., :columns] = to_bfloat16(x)[:, None] * to_bfloat16(weight)
    sums = np.zeros((rows, outputs), np.float32)
    for group in np.split(products, groups, axis=-1):
        if kind == "amx":
            halves = [np.zeros_like(sums), np.zeros_like(sums)]
            for column in range(GROUP):
                halves[column % 2] += group[..., column]
            sums += halves[0] + halves[1]
        else:
            for column in range(0, GROUP, 2):
                sums += group[..., column + 1]
                sums += group[..., column]
    assert np.array_equal(run_linear(kernels, x, block, outputs), sums)


def test_denormal_inputs_are_zero_in_every_kind(kernels: Library, kind: str) -> None:
    """The largest one would be rounded to the smallest normal number; vcvtne2ps2bf16 takes it for zero."""
    largest, smallest_normal = np.float32(2.0**-126 - 2.0**-149), np.float32(2.0**-126)
    block, _ = linear_block(np.random.default_rng(0), np.ones((16, 32), np.float32), "bfloat16")
    x = np.zeros((40, 32), np.float32)  # many rows, and one
    x[:, 3], x[1::2, 3] = largest, smallest_normal
    for rows in (x, x[:1]):
        outputs = run_linear(kernels, rows, block, 16)
        assert not outputs[::2].any() and (outputs[1::2] == smallest_normal).all()
