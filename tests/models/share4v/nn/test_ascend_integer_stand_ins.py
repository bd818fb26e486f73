"""The stand-ins for layer_norm, the cache's scatter, index_select, narrow and integer weights: right, and as strict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from helpers import ascend
from mindspore import Parameter, Tensor, nn

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = ms.float16) -> Tensor:
    return Tensor(RNG.standard_normal(shape).astype(np.float32), dtype)


def test_layer_norm() -> None:
    x, weight, bias = normal(3, 2, 8, dtype=ms.float32), normal(8, dtype=ms.float32), normal(8, dtype=ms.float32)
    wide = x.asnumpy().astype(np.float64)
    scaled = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-2)
    ours = ascend.layer_norm(x, (8,), weight, bias, 1e-2).asnumpy()
    np.testing.assert_allclose(ours, scaled * weight.asnumpy() + bias.asnumpy(), atol=1e-5)


def test_layer_norm_has_the_documentations_values() -> None:
    x, ones = Tensor([[1, 2, 3], [1, 2, 3]], ms.float32), Tensor([1, 1, 1], ms.float32)
    ours = ascend.layer_norm(x, (3,), ones, ones * 0, 1e-7).asnumpy()
    np.testing.assert_allclose(ours, [[-1.2247448, 0, 1.2247448]] * 2, atol=1e-6)


def test_index_select_and_narrow() -> None:
    x = normal(5, 3)
    np.testing.assert_array_equal(
        ascend.index_select(x, 0, Tensor([4, 0, 4], ms.int32)).asnumpy(), x.asnumpy()[[4, 0, 4]]
    )
    np.testing.assert_array_equal(ascend.narrow(x, 1, 1, 2).asnumpy(), x.asnumpy()[:, 1:])


class Scatter(nn.Cell):
    """Writes into a parameter in a graph, as the model does, and returns the parameter."""

    def __init__(self, var: np.ndarray) -> None:
        super().__init__()
        self.var = Parameter(Tensor(var), name="var")

    def construct(self, indices: Tensor, updates: Tensor) -> Tensor:
        return ascend.kv_cache_scatter_update(self.var, indices, updates, -2, "update")


@pytest.mark.parametrize("count, starts", [(1, [0, 5, 3]), (4, [0, 2, 1]), (6, [0, 0, 0])])
def test_the_scatter_writes_from_a_first_slot(count: int, starts: list[int]) -> None:
    """data[i][j][indices[i] + k][l] = updates[i][j][k][l], as CANN's page says."""
    before = RNG.standard_normal((3, 2, 6, 4)).astype(np.float16)
    updates = RNG.standard_normal((3, 2, count, 4)).astype(np.float16)
    cell = Scatter(before)
    wanted = before.copy()
    for i, j, k, position in np.ndindex(3, 2, count, 4):
        wanted[i, j, starts[i] + k, position] = updates[i, j, k, position]
    np.testing.assert_array_equal(cell.compile_and_run(Tensor(np.array(starts)), Tensor(updates)).asnumpy(), wanted)
    np.testing.assert_array_equal(cell.var.asnumpy(), wanted)


@pytest.mark.parametrize("starts", [[0, 3], [-1, 0]])
def test_a_scatter_outside_the_slots_gives_no_numbers(starts: list[int]) -> None:
    updates = Tensor(np.ones((2, 1, 2, 4), np.float16))
    ours = Scatter(np.zeros((2, 1, 4, 4), np.float16)).compile_and_run(Tensor(np.array(starts)), updates)
    assert np.isnan(ours.asnumpy()).all()


def test_int8_products() -> None:
    x, weight = normal(3, 64), RNG.integers(-128, 128, (64, 5)).astype(np.int8)
    scale, offset = normal(5), normal(5)
    wanted = x.asnumpy().astype(np.float64) @ ((weight + offset.asnumpy().astype(np.float64)) * scale.asnumpy())
    plain, transposed = ascend.weight_quant_batch_matmul(), ascend.weight_quant_batch_matmul(False, True)
    for ours in (
        plain(x, Tensor(weight), scale, offset),
        transposed(x, Tensor(np.ascontiguousarray(weight.T)), scale.reshape(1, 5), offset.reshape(1, 5)),
    ):
        assert ours.dtype == ms.float16
        np.testing.assert_allclose(ours.asnumpy(), wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


def test_int4_products() -> None:
    """A group of inputs at a time, one weight at a time; two columns in a byte, the even one in the low half."""
    group, inputs, outputs = 32, 96, 6
    integers = RNG.integers(-8, 8, (inputs, outputs))
    pairs = ((integers[:, 0::2] & 15) | ((integers[:, 1::2] & 15) << 4)).astype(np.uint8).view(np.int8)
    x, scale, offset = normal(2, inputs), normal(3, outputs), normal(3, outputs)
    wide = np.zeros((inputs, outputs))
    for row, column in np.ndindex(inputs, outputs):
        of = row // group, column
        wide[row, column] = (integers[row, column] + float(offset.asnumpy()[of])) * float(scale.asnumpy()[of])
    wanted = x.asnumpy().astype(np.float64) @ wide
    ours = ascend.weight_quant_batch_matmul(False, False, group)(x, Tensor(pairs), scale, offset).asnumpy()
    np.testing.assert_allclose(ours, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


X, W8, S8 = normal(2, 64), Tensor(np.ones((64, 4), np.int8)), normal(4)
W4, S4 = Tensor(np.ones((64, 2), np.int8)), normal(2, 4)
VAR, UPDATES, FIRST = normal(2, 1, 4, 4), normal(2, 1, 1, 4), Tensor([0, 1])
NORM, LINE = normal(2, 8, dtype=ms.float32), normal(8, dtype=ms.float32)


def product(
    x: Tensor = X, weight: Tensor = W8, scale: Tensor = S8, *more: Any, flags: tuple[Any, ...] = (False, False, 0)
) -> Callable[[], Any]:
    return lambda: ascend.weight_quant_batch_matmul(*flags)(x, weight, scale, *more)


def scatter(
    var: Tensor = VAR, first: Tensor = FIRST, updates: Tensor = UPDATES, axis: int = -2, reduce: str = "update"
) -> Callable[[], Any]:
    return lambda: ascend.kv_cache_scatter_update(var, first, updates, axis, reduce)


def norm(
    x: Tensor = NORM, shape: Any = (8,), weight: Tensor = LINE, bias: Tensor = LINE, eps: Any = 1e-5
) -> Callable[[], Any]:
    return lambda: ascend.layer_norm(x, shape, weight, bias, eps)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "product float32": (product(normal(2, 64, dtype=ms.float32)), "float16 or bfloat16"),
    "product of three axes": (product(normal(1, 2, 64)), "two axes"),
    "product of floats": (product(weight=normal(64, 4)), "not int8"),
    "product scale type": (product(scale=normal(4, dtype=ms.float32)), "another type than x"),
    "product scale shape": (product(scale=normal(4, 1)), r"not \(n,\)"),
    "product offset type": (product(X, W8, S8, normal(4, dtype=ms.float32)), "another type than x"),
    "product offset shape": (product(X, W8, S8, normal(1, 4)), "another shape"),
    "product transposed": (product(scale=normal(64), flags=(False, True, 0)), "different k"),
    "product bias": (product(X, W8, S8, None, None, None, S8), "no bias"),
    "int4 group": (product(X, W4, S4, flags=(False, False, 48)), "multiple of 32"),
    "int4 group of everything": (product(X, W4, normal(1, 4), flags=(False, False, 64)), "multiple of 32"),
    "int4 scales transposed": (product(X, W4, normal(4, 2), flags=(False, False, 32)), "k / group_size"),
    "int4 scales of another group": (product(X, W4, normal(4, 4), flags=(False, False, 32)), "k / group_size"),
    "int4 transposed": (product(X, W4, S4, flags=(False, True, 32)), "does not transpose"),
    "scatter axis": (scatter(axis=-1), "axis -2"),
    "scatter mode": (scatter(reduce="none"), "update"),
    "scatter axes": (scatter(var=normal(8, 4)), "four axes"),
    "scatter indices": (scatter(first=Tensor([0])), "one index for each"),
    "scatter index type": (scatter(first=Tensor([0.0, 1.0])), "int32 or int64"),
    "scatter types": (scatter(updates=normal(2, 1, 1, 4, dtype=ms.float32)), "different types"),
    "scatter heads": (scatter(updates=normal(2, 2, 1, 4)), "other axes"),
    "norm types": (norm(NORM.astype(ms.float16)), "different types"),
    "norm shape": (norm(shape=(4,)), "last axis"),
    "norm int": (norm(shape=8), "not a tuple"),
    "norm epsilon": (norm(eps=1), "not a float"),
    "norm weight": (norm(weight=LINE[:4]), "another shape"),
    "select of two axes": (lambda: ascend.index_select(NORM, 0, Tensor([[0]], ms.int32)), "one axis"),
    "select of floats": (lambda: ascend.index_select(NORM, 0, Tensor([0.0])), "int32 or int64"),
    "narrow": (lambda: ascend.narrow(NORM, 1, 1, 8), "leave the axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_documented_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("call", [product(), product(X, W4, S4, flags=(False, False, 32)), norm()])
def test_what_is_documented_is_not(call: Callable[[], Any]) -> None:
    assert np.isfinite(call().asnumpy()).all()
