"""Each fused operator, called by the cells that use it, and the portable cells, against NumPy in float64."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from helpers import operator_checks as checks
from helpers.ascend import portable
from helpers.operator_checks import CHUNK, SLOTS, assert_close, exact, rounded
from mindspore import Tensor

from mindone.models.share4v.language.llama import ScatterCache
from mindone.models.share4v.nn.device_operators import FUSED, DeviceOperators
from mindone.models.share4v.nn.fused import Arithmetic
from mindone.models.share4v.nn.integer_linear import IntegerLinear

HEADS = pytest.mark.parametrize("heads, kv_heads, size", [(4, 4, 64), (8, 2, 128), (5, 1, 48)])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_nothing_is_left_out(operators: DeviceOperators) -> None:
    assert [name for name in FUSED if getattr(operators, name) is None] == []


def test_rms_norm(operators: DeviceOperators, dtype: str) -> None:
    checks.check_rms_norm(operators, dtype)


@pytest.mark.parametrize("heads", [32, 1])
@pytest.mark.parametrize("batch, tokens", [(3, CHUNK), (3, 1), (1, 1)])
def test_rotary(heads: int, batch: int, tokens: int, operators: DeviceOperators, dtype: str) -> None:
    """A prefill's chunk and a step of decoding."""
    checks.check_rotary(heads, batch, tokens, operators, dtype)


@HEADS
def test_prefill_attention(heads: int, kv_heads: int, size: int, operators: DeviceOperators, dtype: str) -> None:
    checks.check_prefill_attention_over_a_cache(heads, kv_heads, size, operators, dtype)


@HEADS
def test_one_mask_for_all_texts(heads: int, kv_heads: int, size: int, operators: DeviceOperators, dtype: str) -> None:
    checks.check_attention_with_one_mask_for_all_texts(heads, kv_heads, size, operators, dtype)


@HEADS
def test_decode_attention(heads: int, kv_heads: int, size: int, operators: DeviceOperators, dtype: str) -> None:
    checks.check_decode_attention_over_a_cache(heads, kv_heads, size, operators, dtype)


def test_layer_norm(operators: DeviceOperators, rng: np.random.Generator, dtype: str) -> None:
    weight, bias = rng.normal(1, 0.5, 1024).astype(np.float32), rng.normal(0, 1, 1024).astype(np.float32)
    for of_type in ("float32", dtype):
        x, wide = rounded(rng.normal(0.5, 3, (2, 5, 1024)), of_type)
        centered = wide - wide.mean(-1, keepdims=True)
        wanted = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * weight + bias
        for row in (operators, portable(operators)):
            norm = Arithmetic.of(dtype, row).layer_norm(1024, 1e-5)
            norm.weight.set_data(Tensor(weight))
            norm.bias.set_data(Tensor(bias))
            assert norm.is_fused == (row is operators)
            assert_close(norm, [x], wanted, of_type)


@pytest.mark.parametrize("tokens", [1, CHUNK])
def test_writing_the_cache(tokens: int, operators: DeviceOperators, rng: np.random.Generator, dtype: str) -> None:
    """A sequence at the beginning, one inside, one at the last slots; the rest stays as it was."""
    cache = ScatterCache(3, 2, SLOTS, 64, getattr(ms, dtype), operators.kv_cache_scatter_update)
    before, wanted = zip(*[rounded(rng.standard_normal((3, 2, SLOTS, 64)), dtype) for _ in "kv"], strict=True)
    cache.key.set_data(before[0])
    cache.value.set_data(before[1])
    starts, new = np.array([0, 40, SLOTS - tokens]), []
    for values in wanted:
        tensor, wide = rounded(rng.standard_normal((3, 2, tokens, 64)), dtype)
        new.append(tensor)
        for sequence, start in enumerate(starts):
            values[sequence, :, start : start + tokens] = wide[sequence]
    found = cache.compile_and_run(*new, Tensor(starts))
    for ours, stored, values in zip(found, (cache.key, cache.value), wanted, strict=True):
        np.testing.assert_array_equal(exact(ours), values)
        np.testing.assert_array_equal(exact(stored), values)


@pytest.mark.parametrize("integers", ["int8", "int4"])
def test_products_with_integer_weights(
    integers: str, operators: DeviceOperators, rng: np.random.Generator, dtype: str
) -> None:
    cell = IntegerLinear(512, 64, False, integers, getattr(ms, dtype), operators)
    cell.put(
        rng.normal(0, 0.05, (64, 512)).astype(np.float32), lambda scale: rounded(scale, dtype)[1].astype(np.float32)
    )
    x, wide = rounded(rng.standard_normal((3, 2, 512)), dtype)
    assert_close(cell, [x], wide @ cell.restored().T.astype(np.float64), dtype)


def test_embeddings(operators: DeviceOperators, rng: np.random.Generator, dtype: str) -> None:
    for row in (operators, portable(operators)):
        cell = Arithmetic.of(dtype, row).embedding(99, 32)
        table, wide = rounded(rng.standard_normal((99, 32)), dtype)
        cell.weight.set_data(table)
        ids = rng.integers(0, 99, (3, 5)).astype(np.int32)
        assert_close(cell, [Tensor(ids)], wide[ids], dtype)
