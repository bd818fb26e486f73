"""The stand-ins for the Ascend's operators: right against brute force, and as strict as the documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from helpers.ascend import layout_of, rms_norm, rotary_position_embedding, stand_ins
from mindspore import Tensor

RNG = np.random.default_rng(0)
FLASH, INCREMENTAL = stand_ins().flash_attention_score, stand_ins().incre_flash_attention


def normal(*shape: int, dtype: Any = ms.float16) -> Tensor:
    return Tensor(RNG.standard_normal(shape).astype(np.float32), dtype)


def brute_force(query: Tensor, key: Tensor, value: Tensor, scale: float, discarded: np.ndarray) -> np.ndarray:
    """One query, one key at a time, in float64; `discarded` [B, T, S]."""
    queries, keys, values = (tensor.asnumpy().astype(np.float64) for tensor in (query, key, value))
    out = np.zeros(queries.shape)
    groups = queries.shape[1] // keys.shape[1]
    for text, head, row in np.ndindex(queries.shape[:3]):
        seen = [slot for slot in range(keys.shape[2]) if not discarded[text, row, slot]]
        source = head // groups
        weights = np.array([np.exp(scale * queries[text, head, row] @ keys[text, source, slot]) for slot in seen])
        for weight, slot in zip(weights / weights.sum(), seen, strict=True):
            out[text, head, row] += weight * values[text, source, slot]
    return out


def test_flash_attention() -> None:
    query, key, value = normal(2, 4, 3, 16), normal(2, 2, 7, 16), normal(2, 2, 7, 16)
    mask = RNG.integers(0, 2, (2, 1, 3, 7)).astype(bool)
    mask[..., 0] = False
    for dtype in (ms.bool_, ms.uint8):
        ours = FLASH(query, key, value, 4, Tensor(mask).astype(dtype), scalar_value=0.3, input_layout="BNSD")
        wanted = brute_force(query, key, value, 0.3, mask[:, 0])
        np.testing.assert_allclose(ours.asnumpy(), wanted, atol=2e-3)
        assert ours.dtype == ms.float16 and ours.shape == query.shape
    shared = FLASH(query, key, value, 4, Tensor(mask[0, 0]), scalar_value=0.3, input_layout="BNSD")
    wanted = brute_force(query, key, value, 0.3, np.stack([mask[0, 0]] * 2))
    np.testing.assert_allclose(shared.asnumpy(), wanted, atol=2e-3)
    nothing = FLASH(query, key, value, 4, scalar_value=0.3, input_layout="BNSD")
    np.testing.assert_allclose(nothing.asnumpy(), brute_force(query, key, value, 0.3, mask[:, 0] & False), atol=2e-3)


def test_incremental_attention() -> None:
    query, key, value = normal(3, 4, 1, 16), normal(3, 2, 6, 16), normal(3, 2, 6, 16)
    lengths = np.array([1, 4, 6])
    ours = INCREMENTAL(
        query,
        [key],
        (value,),
        actual_seq_lengths=Tensor(lengths),
        num_heads=4,
        input_layout="BNSD",
        scale_value=0.25,
        num_key_value_heads=2,
    )
    discarded = np.arange(6) >= lengths[:, None, None]
    np.testing.assert_allclose(ours.asnumpy(), brute_force(query, key, value, 0.25, discarded), atol=2e-3)


def test_rms_norm() -> None:
    x, gamma = normal(2, 3, 8, dtype=ms.float32), normal(8, dtype=ms.float32)
    ours, reciprocal = rms_norm(x, gamma, 1e-2)
    factor = 1 / np.sqrt((x.asnumpy() ** 2).mean(-1, keepdims=True) + 1e-2)
    np.testing.assert_allclose(reciprocal.asnumpy(), factor, rtol=1e-5)
    np.testing.assert_allclose(ours.asnumpy(), x.asnumpy() * factor * gamma.asnumpy(), rtol=1e-5, atol=1e-6)


def test_rms_norm_has_the_documentations_values() -> None:
    x, gamma = Tensor([[1, 2, 3], [1, 2, 3]], ms.float32), Tensor([1, 1, 1], ms.float32)
    ours, reciprocal = rms_norm(x, gamma)
    np.testing.assert_allclose(ours.asnumpy(), [[0.46290997, 0.92581993, 1.3887299]] * 2, rtol=1e-6)
    np.testing.assert_allclose(reciprocal.asnumpy(), [[0.46290997]] * 2, rtol=1e-6)


def test_rotary_turns_pairs_of_dimensions() -> None:
    """Dimensions i and i + D/2 are a complex number, multiplied by e^(i angle)."""
    x, angles = normal(2, 3, 4, 8, dtype=ms.float32), RNG.uniform(-3, 3, (2, 3, 1, 4))
    table = np.concatenate((angles, angles), -1).astype(np.float32)
    ours = rotary_position_embedding(x, Tensor(np.cos(table)), Tensor(np.sin(table))).asnumpy()
    pairs = (x.asnumpy()[..., :4] + 1j * x.asnumpy()[..., 4:]) * np.exp(1j * angles)
    np.testing.assert_allclose(ours[..., :4] + 1j * ours[..., 4:], pairs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "x, table, layout",
    [
        ((4, 8192, 4, 128), (1, 8192, 1, 128), "BSND"),  # the documentation's example
        ((2, 64, 32, 128), (2, 64, 1, 128), "BSND"),
        ((2, 1, 32, 128), (2, 1, 1, 128), "BSND"),
        ((2, 32, 64, 128), (2, 1, 64, 128), "BNSD"),
        ((2, 32, 1, 128), (2, 1, 1, 128), ""),  # one token: more heads than eight times the tokens
        ((64, 2, 32, 128), (64, 2, 1, 128), "BSND"),
        ((64, 2, 32, 128), (64, 1, 1, 128), "SBND"),
        ((1000, 64, 4, 128), (1, 64, 1, 128), ""),
        ((2, 64, 1000, 128), (1, 64, 1, 128), ""),
        ((2, 64, 32, 128), (3, 64, 1, 128), ""),
    ],
)
def test_layouts_of_rotary(x: tuple[int, ...], table: tuple[int, ...], layout: str) -> None:
    assert layout_of(x, table) == layout


Q, K = normal(2, 4, 3, 16), normal(2, 2, 6, 16)
ONE, LENGTHS = normal(2, 4, 1, 16), Tensor([1, 6])
FULL = Tensor(np.zeros((2, 1, 3, 6), bool))
NORM = normal(2, 8, dtype=ms.float32)
X4, TABLE = normal(2, 3, 4, 8), normal(2, 3, 1, 8)
DOUBLE = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": "BNSD"}


def flash(query: Tensor = Q, key: Tensor = K, value: Tensor = K, heads: int = 4, **options: Any) -> Callable[[], Any]:
    return lambda: FLASH(query, key, value, heads, **{"input_layout": "BNSD", **options})


def incremental(query: Tensor = ONE, key: Any = (K,), value: Any = (K,), **options: Any) -> Callable[[], Any]:
    return lambda: INCREMENTAL(query, key, value, **{**DOUBLE, "actual_seq_lengths": LENGTHS, **options})


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "flash layout": (flash(input_layout="BSH"), "layout"),
    "flash float32": (flash(normal(2, 4, 3, 16, dtype=ms.float32)), "float16 or bfloat16"),
    "flash types": (flash(key=normal(2, 2, 6, 16, dtype=ms.float32)), "different types"),
    "flash head size": (flash(normal(2, 4, 3, 8), normal(2, 2, 6, 8), normal(2, 2, 6, 8)), "multiple of 16"),
    "flash heads": (flash(heads=2), "N1"),
    "flash groups": (flash(key=normal(2, 3, 6, 16), value=normal(2, 3, 6, 16)), "not a multiple"),
    "flash value": (flash(value=normal(2, 2, 5, 16)), "different shapes"),
    "flash batch": (flash(key=normal(1, 2, 6, 16), value=normal(1, 2, 6, 16)), "differ in B or D"),
    "flash float mask": (flash(attn_mask=FULL.astype(ms.float32)), "bool or uint8"),
    "flash one mask for all texts": (flash(attn_mask=FULL[:1]), "attn_mask is not"),
    "flash mask of other slots": (flash(attn_mask=FULL[..., 1:]), "attn_mask is not"),
    "flash scale": (flash(scalar_value=1), "not a float"),
    "flash mode": (flash(sparse_mode=2), "sparse_mode 0"),
    "incremental rows": (incremental(Q), "more than one row"),
    "incremental tensor": (incremental(key=K), "not a tuple"),
    "incremental list of texts": (incremental(key=(K, K)), "one tensor"),
    "incremental layout": (incremental(input_layout="BSH"), "layout"),
    "incremental int32": (incremental(actual_seq_lengths=LENGTHS.astype(ms.int32)), "not int64"),
    "incremental lengths": (incremental(actual_seq_lengths=Tensor([3])), r"not \(B,\)"),
    "incremental kv heads": (incremental(num_key_value_heads=4), "num_key_value_heads"),
    "incremental kv heads by default": (incremental(num_key_value_heads=0), "num_key_value_heads"),
    "incremental group": (
        lambda: INCREMENTAL(
            normal(1, 65, 1, 16), (normal(1, 1, 6, 16),), (normal(1, 1, 6, 16),), **{**DOUBLE, "num_heads": 65,
            "num_key_value_heads": 1}
        ),
        "more than 64",
    ),
    "incremental float32": (incremental(normal(2, 4, 1, 16, dtype=ms.float32)), "float16 or bfloat16"),
    "norm types": (lambda: rms_norm(NORM.astype(ms.float16), NORM[0]), "different types"),
    "norm int": (lambda: rms_norm(NORM.astype(ms.int32), NORM[0]), "float16, float32"),
    "norm epsilon": (lambda: rms_norm(NORM, NORM[0], 0.0), "epsilon"),
    "norm rank": (lambda: rms_norm(NORM[0], NORM), "more axes"),
    "norm size": (lambda: rms_norm(NORM, NORM[0, :4]), "last ones"),
    "rotary types": (lambda: rotary_position_embedding(X4, TABLE.astype(ms.float32), TABLE), "different types"),
    "rotary odd": (lambda: rotary_position_embedding(X4[..., :7], TABLE[..., :7], TABLE[..., :7]), "even"),
    "rotary mode": (lambda: rotary_position_embedding(X4, TABLE, TABLE, 1), "mode"),
    "rotary layout": (lambda: rotary_position_embedding(X4, TABLE[:1, :1], TABLE[:1, :1]), "no layout"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_documented_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("call", [flash(attn_mask=FULL), incremental()])
def test_what_is_documented_is_not(call: Callable[[], Any]) -> None:
    assert np.isfinite(call().asnumpy()).all()
