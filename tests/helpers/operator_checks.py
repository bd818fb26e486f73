"""Checks of the cells that use fused operators, and of the portable cells, against NumPy in float64.

tests/ascend runs them on operators, and on sources with a mistake in them, which they must notice.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindone.models.share4v import TextConfig
from mindone.models.share4v.language.rope import Rotary
from mindone.models.share4v.language.rope_tables import rope_tables
from mindone.models.share4v.nn.device_operators import DeviceOperators
from mindone.models.share4v.nn.fused import Arithmetic, FlashAttention

from .ascend import portable

# What an error is measured in: half a unit in the last place of 1, and more room where no one rounds the result.
UNIT = {"float32": 2.0**-20, "float16": 2.0**-11, "bfloat16": 2.0**-8}
CHUNK, SLOTS = 64, 129


def rounded(values: np.ndarray, dtype: str) -> tuple[Tensor, np.ndarray]:
    """Return values in a type, and the same numbers as float64."""
    tensor = Tensor(values.astype(np.float32)).astype(getattr(ms, dtype))
    return tensor, exact(tensor)


def exact(tensor: Tensor) -> np.ndarray:
    return tensor.astype(ms.float32).asnumpy().astype(np.float64)


def assert_close(cell: nn.Cell, arguments: list[Tensor], wanted: np.ndarray, dtype: str) -> None:
    """Run a cell as the model does, in a graph."""
    ours = cell.compile_and_run(*arguments)
    assert (ours.dtype, ours.shape) == (getattr(ms, dtype), wanted.shape)
    np.testing.assert_allclose(exact(ours), wanted, rtol=0, atol=4 * UNIT[dtype] * np.abs(wanted).max())


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """float64 [B, Hq, T, D] and [B, Hkv, S, D], hidden bool [B, T, S] -> [B, T, Hq * D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, groups, 1), np.repeat(value, groups, 1)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    weights = np.exp(np.where(hidden[:, None], -np.inf, scores - scores.max(-1, keepdims=True)))
    mixed = (weights / weights.sum(-1, keepdims=True) @ value).transpose(0, 2, 1, 3)
    return mixed.reshape(*mixed.shape[:2], -1)


def check_rms_norm(operators: DeviceOperators, dtype: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(1, 0.5, 4096).astype(np.float32)
    for of_type in ("float32", dtype):
        x, wide = rounded(rng.normal(0, 3, (2, 5, 4096)), of_type)
        wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight
        for row in (operators, portable(operators)):
            norm = Arithmetic.of(dtype, row).rms_norm(4096, 1e-5)
            norm.weight.set_data(Tensor(weight))
            assert norm.is_fused == (row is operators)
            assert_close(norm, [x], wanted, of_type)


def check_rotary(heads: int, batch: int, tokens: int, operators: DeviceOperators, dtype: str) -> None:
    """A prefill's chunk and a step of decoding, texts at positions of their own."""
    rng = np.random.default_rng(0)
    size = 128
    config = TextConfig(99, heads * size, 64, 1, heads)
    positions = rng.integers(0, 2000, (batch, 1)) + np.arange(tokens)
    cos, sin = rope_tables(config, positions, np.full(batch, 2000))
    x, wide = rounded(rng.standard_normal((batch, tokens, heads * size)), dtype)
    split = wide.reshape(batch, tokens, heads, size).transpose(0, 2, 1, 3)
    angles = positions[:, None, :, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    pairs = (split[..., : size // 2] + 1j * split[..., size // 2 :]) * np.exp(1j * angles)
    wanted = np.concatenate((pairs.real, pairs.imag), -1)
    for row in (operators, portable(operators)):
        rotary = Rotary(heads, size, row)
        assert rotary.is_fused == (row is operators)
        assert_close(rotary, [x, Tensor(cos), Tensor(sin)], wanted, dtype)


def check_prefill_attention_over_a_cache(
    heads: int, kv_heads: int, size: int, operators: DeviceOperators, dtype: str
) -> None:
    """A text in its second chunk, one that ends within its first, one that is idle: a query sees slots 0..position."""
    rng = np.random.default_rng(0)
    positions = np.stack([np.arange(CHUNK) + CHUNK, np.where(np.arange(CHUNK) < 10, np.arange(CHUNK), SLOTS - 1)])
    positions = np.concatenate((positions, np.full((1, CHUNK), SLOTS - 1)))
    hidden = np.arange(SLOTS) > positions[:, :, None]  # [B, T, S]
    query, wide_query = rounded(rng.standard_normal((3, heads, CHUNK, size)), dtype)
    key, wide_key = rounded(rng.standard_normal((3, kv_heads, SLOTS, size)), dtype)
    value, wide_value = rounded(rng.standard_normal((3, kv_heads, SLOTS, size)), dtype)
    wanted = attention(wide_query, wide_key, wide_value, hidden)
    for row in (operators, portable(operators)):
        cell = Arithmetic.of(dtype, row).attention(heads, kv_heads, size, SLOTS)
        assert isinstance(cell, FlashAttention) == (row is operators)
        assert_close(cell, [query, key, value, cell.mask(Tensor(hidden[:, None]))], wanted, dtype)


def check_attention_with_one_mask_for_all_texts(
    heads: int, kv_heads: int, size: int, operators: DeviceOperators, dtype: str
) -> None:
    """Whole texts: causal for the language model, nothing hidden for the vision tower."""
    rng = np.random.default_rng(0)
    tokens = 145
    query, wide_query = rounded(rng.standard_normal((2, heads, tokens, size)), dtype)
    key, wide_key = rounded(rng.standard_normal((2, kv_heads, tokens, size)), dtype)
    value, wide_value = rounded(rng.standard_normal((2, kv_heads, tokens, size)), dtype)
    causal = np.triu(np.ones((tokens, tokens), bool), 1)
    with_mask, without_mask = (
        attention(wide_query, wide_key, wide_value, np.stack([hidden] * 2)) for hidden in (causal, causal & False)
    )
    for row in (operators, portable(operators)):
        cell = Arithmetic.of(dtype, row).attention(heads, kv_heads, size, tokens)
        for wanted, mask in ((with_mask, [cell.mask(Tensor(causal[None, None]))]), (without_mask, [])):
            assert_close(cell, [query, key, value, *mask], wanted, dtype)


def check_decode_attention_over_a_cache(
    heads: int, kv_heads: int, size: int, operators: DeviceOperators, dtype: str
) -> None:
    """Texts that have one slot, some slots and all of them."""
    rng = np.random.default_rng(0)
    lengths = np.array([1, 77, SLOTS])
    query, wide_query = rounded(rng.standard_normal((3, heads, 1, size)), dtype)
    key, wide_key = rounded(rng.standard_normal((3, kv_heads, SLOTS, size)), dtype)
    value, wide_value = rounded(rng.standard_normal((3, kv_heads, SLOTS, size)), dtype)
    hidden = np.arange(SLOTS) >= lengths[:, None, None]
    wanted = attention(wide_query, wide_key, wide_value, hidden)
    fused = Arithmetic.of(dtype, operators).one_query_attention(heads, kv_heads, size, SLOTS)
    assert fused is not None
    assert_close(fused, [query, key, value, Tensor(lengths)], wanted, dtype)
    cell = Arithmetic.of(dtype, portable(operators)).attention(heads, kv_heads, size, SLOTS)
    assert_close(cell, [query, key, value, cell.mask(Tensor(hidden[:, None]))], wanted, dtype)
