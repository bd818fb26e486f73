"""Rounding weights to the integers and scales of Ascend's product, and the layer that uses them, on a stand-in."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import mindspore as ms
import numpy as np
import pytest
from helpers.ascend import stand_ins, weight_quant_batch_matmul
from mindspore import Tensor

from mindone.models.share4v.bfloat16 import from_bfloat16, to_bfloat16
from mindone.models.share4v.nn import integer_linear
from mindone.models.share4v.nn.device_operators import IntegerLimits
from mindone.models.share4v.nn.integer_linear import IntegerLinear
from mindone.models.share4v.nn.integer_weights import pack_int4, restored, round_int4, round_int8, unpack_int4

RNG = np.random.default_rng(0)
GROUP = IntegerLimits().group


def half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


def bfloat(array: np.ndarray) -> np.ndarray:
    return from_bfloat16(to_bfloat16(array))


NARROW = {"float16": half, "bfloat16": bfloat}


def weights(outputs: int = 6, inputs: int = 3 * GROUP) -> np.ndarray:
    """Groups of different ranges, some on one side of zero; one output is all zeros."""
    values = RNG.normal(0, 1, (outputs, inputs)) * np.exp(RNG.normal(0, 1, (outputs, inputs // GROUP)).repeat(GROUP, 1))
    values[1, :GROUP] = np.abs(values[1, :GROUP]) + 3
    values[2] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize("activations", NARROW)
def test_int8_is_off_by_half_a_step(activations: str) -> None:
    """At the ends of the range it may be more, as the scale itself is rounded to the type of the activations."""
    weight, narrow = weights(), NARROW[activations]
    rounded = round_int8(weight, narrow)
    assert rounded.weight.dtype == np.int8 and rounded.weight.shape == weight.shape and rounded.scale.shape == (6,)
    np.testing.assert_array_equal(narrow(rounded.scale), rounded.scale)
    allowed = 0.5 + 127 * {"float16": 2.0**-11, "bfloat16": 2.0**-8}[activations]
    error = np.abs(restored(rounded) - weight) / rounded.scale[:, None]
    assert error.max() <= allowed and not restored(rounded)[2].any()
    assert np.abs(rounded.weight[[0, 1, 3]]).max(1).min() >= 126  # the whole range is used


@pytest.mark.parametrize("activations", NARROW)
def test_int4_is_off_by_half_a_step_of_its_group(activations: str) -> None:
    weight, narrow = weights(), NARROW[activations]
    rounded = round_int4(weight, GROUP, narrow)
    assert rounded.offset is not None
    assert rounded.weight.shape == (3 * GROUP, 3) and rounded.scale.shape == rounded.offset.shape == (3, 6)
    np.testing.assert_array_equal(narrow(rounded.scale), rounded.scale)
    np.testing.assert_array_equal(narrow(rounded.offset), rounded.offset)
    steps = rounded.scale.T.repeat(GROUP, 1)  # [O, I]
    error = np.abs(restored(rounded) - weight) / steps
    # Of a group with a smaller range, the largest weights are off by more than a step; in the mean nothing is.
    assert np.sqrt((error**2).mean()) < 0.45 and np.median(error) < 0.3 and not restored(rounded)[2].any()


def test_int4_takes_the_range_with_the_smallest_error_of_what_matters() -> None:
    """One large weight in each group: if it does not matter, a smaller range brings the others closer."""
    weight = RNG.normal(0, 1, (8, 2 * GROUP)).astype(np.float32)
    weight[:, ::GROUP] = 6
    same = np.ones(2 * GROUP, np.float32)
    others = np.where(np.arange(2 * GROUP) % GROUP == 0, 1e-4, 1.0).astype(np.float32)

    def error(importance: np.ndarray | None, counted: np.ndarray) -> float:
        difference = restored(round_int4(weight, GROUP, half, importance)) - weight
        return float((difference**2 * counted).sum())

    assert error(others, others) < 0.9 * error(None, others)
    assert error(None, same) < 0.7 * error(others, same)
    assert error(same, same) == error(None, same)


def test_int4_keeps_what_is_on_its_grid() -> None:
    scale, offset = 2.0 ** RNG.integers(-8, -3, (2, 4)), RNG.integers(-7, 9, (2, 4))
    integers = RNG.integers(-8, 8, (2, GROUP, 4))
    integers[:, 0], integers[:, 1] = -8, 7
    weight = ((integers + offset[:, None]) * scale[:, None]).reshape(-1, 4).T.astype(np.float32)
    rounded = round_int4(weight, GROUP, half)
    np.testing.assert_array_equal(rounded.scale, scale)
    np.testing.assert_array_equal(restored(rounded), weight)


def test_two_int4_in_a_byte() -> None:
    """Output 0 is in the low four bits, as in MindSpore's tests of the type."""
    assert pack_int4(np.array([[1, -8], [-1, 7]], np.int8)).view(np.uint8).tolist() == [[0x81], [0x7F]]
    everything = np.array([[low, high] for low in range(-8, 8) for high in range(-8, 8)], np.int8)
    np.testing.assert_array_equal(unpack_int4(pack_int4(everything)), everything)


@pytest.mark.parametrize(
    "dtype, sizes, allowed",
    [
        ("int8", (100, 7), True),
        ("int8", (4096, 128256), False),
        ("int4", (2 * GROUP, 8), True),
        ("int4", (2 * GROUP, 7), False),
        ("int4", (GROUP, 8), False),  # the documentation asks for less than all inputs
        ("int4", (GROUP + 16, 8), False),
    ],
)
def test_which_matrices_may_be_integers(dtype: str, sizes: tuple[int, int], allowed: bool) -> None:
    assert IntegerLimits().allow(dtype, *sizes) == allowed
    assert GROUP % 32 == 0


def layer(integers: str, operators: object = None) -> tuple[IntegerLinear, np.ndarray]:
    """A layer on stand-ins, filled, and the matrix that its integers mean."""
    cell = IntegerLinear(3 * GROUP, 6, True, integers, ms.float16, operators or stand_ins())
    weight = weights()
    cell.put(weight, half)
    cell.bias.set_data(Tensor(np.arange(6), ms.float32))
    rounded = round_int4(weight, GROUP, half) if integers == "int4" else round_int8(weight, half)
    return cell, restored(rounded)


def error_of(cell: IntegerLinear, matrix: np.ndarray) -> float:
    """The largest difference from the product with `matrix`, as a share of the largest result."""
    x = RNG.normal(0, 1, (2, 3, 3 * GROUP)).astype(np.float16)
    ours = cell.compile_and_run(Tensor(x))
    assert ours.dtype == ms.float16 and ours.shape == (2, 3, 6)
    exact = x.astype(np.float64) @ matrix.T.astype(np.float64) + np.arange(6)
    return float(np.abs(ours.asnumpy() - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize("integers", ["int8", "int4"])
def test_the_layer_multiplies_by_what_its_integers_mean(integers: str) -> None:
    assert error_of(*layer(integers)) < 2.0**-10


def test_a_wrong_group_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    half_group = replace(
        stand_ins(), weight_quant_batch_matmul=lambda *flags: weight_quant_batch_matmul(False, False, 64)
    )
    cell, matrix = layer("int4", half_group)
    with pytest.raises(ValueError, match="antiquant_scale is not"):
        error_of(cell, matrix)


def test_swapped_nibbles_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = partial(round_int4)

    def swap(*arguments: object) -> object:
        rounded = swapped(*arguments)
        return replace(
            rounded, weight=((rounded.weight.view(np.uint8) << 4) | (rounded.weight.view(np.uint8) >> 4)).view(np.int8)
        )

    monkeypatch.setattr(integer_linear, "round_int4", swap)
    assert error_of(*layer("int4")) > 0.1


def test_scales_in_another_order_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales per output before groups, in the memory of the right shape."""

    def transpose(*arguments: object) -> object:
        rounded = round_int4(*arguments)
        return replace(rounded, scale=np.ascontiguousarray(rounded.scale.T).reshape(rounded.scale.shape))

    monkeypatch.setattr(integer_linear, "round_int4", transpose)
    assert error_of(*layer("int4")) > 0.1


def test_a_missing_offset_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, matrix = layer("int4")
    cell.offset.set_data(Tensor(np.zeros(cell.offset.shape), ms.float16))
    assert error_of(cell, matrix) > 0.1


def test_an_untransposed_int8_weight_is_refused() -> None:
    plain = replace(stand_ins(), weight_quant_batch_matmul=lambda *flags: weight_quant_batch_matmul(False, False, 0))
    cell, matrix = layer("int8", plain)
    with pytest.raises(ValueError, match=r"antiquant_scale is not|[Rr]eshape"):
        error_of(cell, matrix)
