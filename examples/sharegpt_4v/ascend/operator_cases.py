"""What check_operators.py runs: cells of the model on shapes like the 7B's, and NumPy's answer to the same inputs.

A case takes the name of a type and returns what the device computed and what is right, float64 both; or None where the
device does not have the operator, or does not have it in that type.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Case = tuple[np.ndarray, np.ndarray] | None
TEXTS, CHUNK, SLOTS, HEADS, SIZE, HIDDEN = 2, 64, 1025, 32, 128, 4096


def exact(tensor: Any) -> np.ndarray:
    """A tensor as float64."""
    import mindspore as ms

    result: np.ndarray = tensor.astype(ms.float32).asnumpy().astype(np.float64)
    return result


def inputs(dtype: str, *shapes: tuple[int, ...]) -> list[Any]:
    """Random tensors of a type; the same for the same shapes."""
    import mindspore as ms

    rng = np.random.default_rng(0)
    return [ms.Tensor(rng.standard_normal(shape).astype(np.float32)).astype(getattr(ms, dtype)) for shape in shapes]


def weighted(cell: Any) -> Any:
    """Give a cell's parameters random values of a useful size, and return it."""
    import mindspore as ms

    rng = np.random.default_rng(1)
    for _, parameter in cell.parameters_and_names():
        values = rng.standard_normal(parameter.shape) / np.sqrt(parameter.shape[-1])
        parameter.set_data(ms.Tensor(values.astype(np.float32)).astype(parameter.dtype))
    return cell


def arithmetic(dtype: str, fused: bool) -> Any:
    """The device's types and operators, or its types alone."""
    from dataclasses import replace

    from mindone.models.share4v.nn.device_operators import FUSED, device_operators
    from mindone.models.share4v.nn.fused import Arithmetic

    operators = device_operators()
    return Arithmetic.of(dtype, operators if fused else replace(operators, **dict.fromkeys(FUSED)))


def linear(dtype: str) -> Case:
    import mindspore as ms

    from mindone.models.share4v.nn.layers import Linear

    cell, (x,) = weighted(Linear(HIDDEN, HIDDEN // 4, dtype=getattr(ms, dtype))), inputs(dtype, (TEXTS, 8, HIDDEN))
    return exact(cell.compile_and_run(x)), exact(x) @ exact(cell.weight).T + exact(cell.bias)


def embedding(dtype: str) -> Case:
    import mindspore as ms

    from mindone.models.share4v.nn.layers import Embedding

    kind = getattr(ms, dtype)
    cell, ids = weighted(Embedding(32000, 64, kind, kind)), np.random.default_rng(2).integers(0, 32000, (TEXTS, 9))
    return exact(cell.compile_and_run(ms.Tensor(ids.astype(np.int32)))), exact(cell.weight)[ids]


def layer_norm(dtype: str) -> Case:
    from mindone.models.share4v.nn.layers import LayerNorm

    cell, (x,) = weighted(LayerNorm(1024, 1e-5)), inputs(dtype, (1, 577, 1024))
    wide = exact(x)
    scaled = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    return exact(cell.compile_and_run(x)), scaled * exact(cell.weight) + exact(cell.bias)


def activation(name: str, right: Callable[[np.ndarray], np.ndarray], dtype: str) -> Case:
    from mindone.models.share4v.nn.layers import ACTIVATIONS

    (x,) = inputs(dtype, (TEXTS, 5, HIDDEN))
    return exact(ACTIVATIONS[name]().compile_and_run(x)), right(exact(x))


def exact_gelu(x: np.ndarray) -> np.ndarray:
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def cache_write(dtype: str) -> Case:
    """A chunk of each text is written where its tokens go, and padding to the last slot."""
    import mindspore as ms

    from mindone.models.share4v.language.llama import LayerCache

    cache = LayerCache(TEXTS, 4, SLOTS, SIZE, getattr(ms, dtype))
    key, value = inputs(dtype, (TEXTS, 4, CHUNK, SIZE), (TEXTS, 4, CHUNK, SIZE))
    places = np.stack([np.arange(CHUNK) + 70, np.where(np.arange(CHUNK) < 5, np.arange(CHUNK), SLOTS - 1)])  # [B, C]
    starts = np.arange(TEXTS * 4).reshape(TEXTS, 4, 1) * SLOTS
    keys, values = cache.compile_and_run(key, value, ms.Tensor((starts + places[:, None]).reshape(-1).astype(np.int32)))
    ours, wanted = [], []
    for text, count in ((0, CHUNK), (1, 5)):
        for kept, given in ((keys, key), (values, value)):
            ours.append(exact(kept)[text, :, places[text, :count]].ravel())
            wanted.append(exact(given)[text, :, :count].transpose(1, 0, 2).ravel())
    return np.concatenate(ours), np.concatenate(wanted)


def rms_norm(fused: bool, dtype: str) -> Case:
    cell, (x,) = weighted(arithmetic(dtype, fused).rms_norm(HIDDEN, 1e-5)), inputs(dtype, (TEXTS, 3, HIDDEN))
    if cell.is_fused != fused:
        return None
    wide = exact(x)
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * exact(cell.weight)
    return exact(cell.compile_and_run(x)), wanted


def rotary(fused: bool, tokens: int, dtype: str) -> Case:
    import mindspore as ms

    from mindone.models.share4v.language.rope import Rotary

    cell, (x,) = Rotary(HEADS, SIZE, arithmetic(dtype, fused).operators), inputs(dtype, (TEXTS, tokens, HEADS * SIZE))
    if cell.is_fused != fused:
        return None
    positions = np.array([[700], [3]]) + np.arange(tokens)
    angles = (positions[:, None, :, None] * 10000.0 ** (-np.arange(0, SIZE, 2) / SIZE)).astype(np.float32)
    table = np.concatenate((angles, angles), -1)  # [B, 1, T, D]
    split = exact(x).reshape(TEXTS, tokens, HEADS, SIZE).transpose(0, 2, 1, 3)
    turned = (split[..., : SIZE // 2] + 1j * split[..., SIZE // 2 :]) * np.exp(1j * angles.astype(np.float64))
    ours = cell.compile_and_run(x, ms.Tensor(np.cos(table)), ms.Tensor(np.sin(table)))
    return exact(ours), np.concatenate((turned.real, turned.imag), -1)


def attention(query: Any, key: Any, value: Any, hidden: np.ndarray) -> np.ndarray:
    """Attention in float64; hidden bool, [B, T, S] or less -> [B, T, H * D]."""
    queries, keys, values = exact(query), exact(key), exact(value)
    groups = queries.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, groups, 1), np.repeat(values, groups, 1)
    scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(queries.shape[-1])
    weights = np.exp(np.where(hidden[:, None], -np.inf, scores - scores.max(-1, keepdims=True)))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ values
    return mixed.transpose(0, 2, 1, 3).reshape(mixed.shape[0], mixed.shape[2], -1)


def prefill_attention(fused: bool, kv_heads: int, dtype: str) -> Case:
    """A chunk over a cache: text 0 stands at 500, text 1 at the beginning."""
    import mindspore as ms

    from mindone.models.share4v.nn.fused import FlashAttention

    cell = arithmetic(dtype, fused).attention(HEADS, kv_heads, SIZE, SLOTS)
    if isinstance(cell, FlashAttention) != fused:
        return None
    kept = TEXTS, kv_heads, SLOTS, SIZE
    query, key, value = inputs(dtype, (TEXTS, HEADS, CHUNK, SIZE), kept, kept)
    hidden = np.arange(SLOTS) > (np.array([[500], [0]]) + np.arange(CHUNK))[:, :, None]
    ours = cell.compile_and_run(query, key, value, cell.mask(ms.Tensor(hidden[:, None])))
    return exact(ours), attention(query, key, value, hidden)


def vision_attention(fused: bool, dtype: str) -> Case:
    """CLIP ViT-L/14 at 336 pixels: 577 tokens, 16 heads of 64, nothing hidden."""
    from mindone.models.share4v.nn.fused import FlashAttention

    cell = arithmetic(dtype, fused).attention(16, 16, 64, 577)
    if isinstance(cell, FlashAttention) != fused:
        return None
    query, key, value = inputs(dtype, *[(1, 16, 577, 64)] * 3)
    return exact(cell.compile_and_run(query, key, value)), attention(query, key, value, np.zeros((1, 577, 577), bool))


def decode_attention(kv_heads: int, dtype: str) -> Case:
    """One token of each text over a cache in which the texts have 700 slots and one."""
    import mindspore as ms

    cell = arithmetic(dtype, True).one_query_attention(HEADS, kv_heads, SIZE, SLOTS)
    if cell is None:
        return None
    kept = TEXTS, kv_heads, SLOTS, SIZE
    query, key, value = inputs(dtype, (TEXTS, HEADS, 1, SIZE), kept, kept)
    lengths = np.array([700, 1])
    ours = cell.compile_and_run(query, key, value, ms.Tensor(lengths))
    return exact(ours), attention(query, key, value, np.arange(SLOTS) >= lengths[:, None, None])


CASES: dict[str, Callable[[str], Case]] = {
    "linear": linear,
    "embedding": embedding,
    "layer_norm": layer_norm,
    "gelu": partial(activation, "gelu", exact_gelu),
    "quick_gelu": partial(activation, "quick_gelu", quick_gelu),
    "cache_write": cache_write,
    "rms_norm": partial(rms_norm, False),
    "rotary": partial(rotary, False, CHUNK),
    "attention": partial(prefill_attention, False, HEADS),
    "vision_attention": partial(vision_attention, False),
    "fused_rms_norm": partial(rms_norm, True),
    "fused_rotary_prefill": partial(rotary, True, CHUNK),
    "fused_rotary_decode": partial(rotary, True, 1),
    "flash_attention_score_prefill": partial(prefill_attention, True, HEADS),
    "flash_attention_score_grouped": partial(prefill_attention, True, 8),
    "flash_attention_score_vision": partial(vision_attention, True),
    "incre_flash_attention": partial(decode_attention, HEADS),
    "incre_flash_attention_grouped": partial(decode_attention, 8),
}
