"""The cases of check_operators.py: cells of the model on shapes like the 7B's, and NumPy's result for the same inputs.

A case takes the name of a dtype and returns the device's result and the expected one, both float64; or None if the
device does not have the operator, or not for that dtype. The fused cases have never run on an Ascend, and no other
device has their operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Case = tuple[np.ndarray, np.ndarray] | None

BATCH = 2
CHUNK = 64  # tokens of a prefill step
SLOTS = 1025  # of the KV cache; the last one receives padding
HEADS = 32
HEAD_SIZE = 128
HIDDEN = 4096


def is_supported(dtype: str) -> bool:
    """Return whether MindSpore's device computes in a dtype: a CPU does not in bfloat16."""
    from mindone.models.share4v.nn.device_operators import device_operators

    return dtype in device_operators().dtypes


def exact(tensor: Any) -> np.ndarray:
    """Return a tensor as a float64 array."""
    import mindspore as ms

    result: np.ndarray = tensor.astype(ms.float32).asnumpy().astype(np.float64)
    return result


def inputs(dtype: str, *shapes: tuple[int, ...]) -> list[Any]:
    """Return random tensors; the same shapes always give the same values."""
    import mindspore as ms

    rng = np.random.default_rng(0)
    return [ms.Tensor(rng.standard_normal(shape).astype(np.float32)).astype(getattr(ms, dtype)) for shape in shapes]


def with_random_weights(cell: Any) -> Any:
    """Fill a cell's parameters with random values, scaled to keep outputs near 1, and return the cell."""
    import mindspore as ms

    rng = np.random.default_rng(1)
    for _, parameter in cell.parameters_and_names():
        values = rng.standard_normal(parameter.shape) / np.sqrt(parameter.shape[-1])
        parameter.set_data(ms.Tensor(values.astype(np.float32)).astype(parameter.dtype))
    return cell


def arithmetic(dtype: str, fused: bool) -> Any:
    """Return the device's arithmetic in `dtype`, with or without its fused operators."""
    from dataclasses import replace

    from mindone.models.share4v.nn.device_operators import FUSED, device_operators
    from mindone.models.share4v.nn.fused import Arithmetic

    operators = device_operators()
    return Arithmetic.of(dtype, operators if fused else replace(operators, **dict.fromkeys(FUSED)))


def linear(dtype: str) -> Case:
    import mindspore as ms

    from mindone.models.share4v.nn.layers import Linear

    cell, (x,) = (
        with_random_weights(Linear(HIDDEN, HIDDEN // 4, dtype=getattr(ms, dtype))),
        inputs(dtype, (BATCH, 8, HIDDEN)),
    )
    return exact(cell.compile_and_run(x)), exact(x) @ exact(cell.weight).T + exact(cell.bias)


def embedding(fused: bool, dtype: str) -> Case:
    import mindspore as ms

    device = arithmetic(dtype, fused)
    if (device.operators.index_select is not None) != fused:
        return None
    cell = with_random_weights(device.embedding(32000, 64))
    ids = np.random.default_rng(2).integers(0, 32000, (BATCH, 9))
    return exact(cell.compile_and_run(ms.Tensor(ids.astype(np.int32)))), exact(cell.weight)[ids]


def layer_norm(fused: bool, dtype: str) -> Case:
    cell, (x,) = with_random_weights(arithmetic(dtype, fused).layer_norm(1024, 1e-5)), inputs(dtype, (1, 577, 1024))
    if cell.is_fused != fused:
        return None
    wide = exact(x)
    scaled = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    return exact(cell.compile_and_run(x)), scaled * exact(cell.weight) + exact(cell.bias)


def activation(name: str, reference: Callable[[np.ndarray], np.ndarray], dtype: str) -> Case:
    from mindone.models.share4v.nn.layers import ACTIVATIONS

    (x,) = inputs(dtype, (BATCH, 5, HIDDEN))
    return exact(ACTIVATIONS[name]().compile_and_run(x)), reference(exact(x))


def exact_gelu(x: np.ndarray) -> np.ndarray:
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def cache_write(dtype: str) -> Case:
    """Write a chunk of each sequence to its slots of the cache, and the padding to the last slot."""
    import mindspore as ms

    from mindone.models.share4v.language.llama import LayerCache

    cache = LayerCache(BATCH, 4, SLOTS, HEAD_SIZE, getattr(ms, dtype))
    key, value = inputs(dtype, (BATCH, 4, CHUNK, HEAD_SIZE), (BATCH, 4, CHUNK, HEAD_SIZE))
    slots = np.stack([np.arange(CHUNK) + 70, np.where(np.arange(CHUNK) < 5, np.arange(CHUNK), SLOTS - 1)])  # [B, C]
    starts = np.arange(BATCH * 4).reshape(BATCH, 4, 1) * SLOTS
    keys, values = cache.compile_and_run(key, value, ms.Tensor((starts + slots[:, None]).reshape(-1).astype(np.int32)))
    ours, expected = [], []
    for sequence, count in ((0, CHUNK), (1, 5)):
        for cached, written in ((keys, key), (values, value)):
            ours.append(exact(cached)[sequence, :, slots[sequence, :count]].ravel())
            expected.append(exact(written)[sequence, :, :count].transpose(1, 0, 2).ravel())
    return np.concatenate(ours), np.concatenate(expected)


def cache_scatter(tokens: int, dtype: str) -> Case:
    """Write `tokens` tokens of each sequence from a first slot, with the device's own operator."""
    import mindspore as ms

    from mindone.models.share4v.language.llama import ScatterCache

    operator = arithmetic(dtype, True).operators.kv_cache_scatter_update
    if operator is None:
        return None
    cache = ScatterCache(BATCH, 4, SLOTS, HEAD_SIZE, getattr(ms, dtype), operator)
    key, value = inputs(dtype, *[(BATCH, 4, tokens, HEAD_SIZE)] * 2)
    starts = np.array([70, SLOTS - tokens])
    keys, values = cache.compile_and_run(key, value, ms.Tensor(starts))
    expected = np.zeros((2, BATCH, 4, SLOTS, HEAD_SIZE))
    for number, written in enumerate((key, value)):
        for sequence, start in enumerate(starts):
            expected[number, sequence, :, start : start + tokens] = exact(written)[sequence]
    return np.stack([exact(keys), exact(values)]), expected


def integer_product(integers: str, dtype: str) -> Case:
    """Multiply by weights of int8, or int4 in groups; expected is the product with the floats that they mean."""
    from mindone.models.share4v.nn.integer_linear import IntegerLinear
    from mindone.models.share4v.nn.integer_weights import restored, round_int4, round_int8

    device = arithmetic(dtype, True)
    if device.operators.weight_quant_batch_matmul is None or dtype == "float32":
        return None
    cell = IntegerLinear(HIDDEN, HIDDEN // 4, False, integers, device.activations, device.operators)
    weight = np.random.default_rng(3).normal(0, HIDDEN**-0.5, cell.shape).astype(np.float32)

    def narrow(array: np.ndarray) -> np.ndarray:
        import mindspore as ms

        return exact(ms.Tensor(array.astype(np.float32)).astype(device.activations)).astype(np.float32)

    cell.put(weight, narrow)
    (x,) = inputs(dtype, (BATCH, 8, HIDDEN))
    rounded = round_int4(weight, cell.group, narrow) if integers == "int4" else round_int8(weight, narrow)
    return exact(cell.compile_and_run(x)), exact(x) @ restored(rounded).T.astype(np.float64)


def rms_norm(fused: bool, dtype: str) -> Case:
    cell, (x,) = with_random_weights(arithmetic(dtype, fused).rms_norm(HIDDEN, 1e-5)), inputs(dtype, (BATCH, 3, HIDDEN))
    if cell.is_fused != fused:
        return None
    wide = exact(x)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * exact(cell.weight)
    return exact(cell.compile_and_run(x)), expected


def rotary(fused: bool, tokens: int, dtype: str) -> Case:
    import mindspore as ms

    from mindone.models.share4v.language.rope import Rotary

    cell, (x,) = (
        Rotary(HEADS, HEAD_SIZE, arithmetic(dtype, fused).operators),
        inputs(dtype, (BATCH, tokens, HEADS * HEAD_SIZE)),
    )
    if cell.is_fused != fused:
        return None
    positions = np.array([[700], [3]]) + np.arange(tokens)
    angles = (positions[:, None, :, None] * 10000.0 ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)).astype(np.float32)
    table = np.concatenate((angles, angles), -1)  # [B, 1, T, D]
    split = exact(x).reshape(BATCH, tokens, HEADS, HEAD_SIZE).transpose(0, 2, 1, 3)
    rotated = (split[..., : HEAD_SIZE // 2] + 1j * split[..., HEAD_SIZE // 2 :]) * np.exp(
        1j * angles.astype(np.float64)
    )
    ours = cell.compile_and_run(x, ms.Tensor(np.cos(table)), ms.Tensor(np.sin(table)))
    return exact(ours), np.concatenate((rotated.real, rotated.imag), -1)


def attention(query: Any, key: Any, value: Any, hidden: np.ndarray) -> np.ndarray:
    """Attention in float64 -> [B, T, H * D]; `hidden` is a bool mask that broadcasts to [B, T, S]."""
    queries, keys, values = exact(query), exact(key), exact(value)
    groups = queries.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, groups, 1), np.repeat(values, groups, 1)
    scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(queries.shape[-1])
    weights = np.exp(np.where(hidden[:, None], -np.inf, scores - scores.max(-1, keepdims=True)))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ values
    return mixed.transpose(0, 2, 1, 3).reshape(mixed.shape[0], mixed.shape[2], -1)


def prefill_attention(fused: bool, kv_heads: int, dtype: str) -> Case:
    """Attention of a chunk over the cache: sequence 0 starts at position 500, sequence 1 at 0."""
    import mindspore as ms

    from mindone.models.share4v.nn.fused import FlashAttention

    cell = arithmetic(dtype, fused).attention(HEADS, kv_heads, HEAD_SIZE, SLOTS)
    if isinstance(cell, FlashAttention) != fused:
        return None
    cache_shape = (BATCH, kv_heads, SLOTS, HEAD_SIZE)
    query, key, value = inputs(dtype, (BATCH, HEADS, CHUNK, HEAD_SIZE), cache_shape, cache_shape)
    hidden = np.arange(SLOTS) > (np.array([[500], [0]]) + np.arange(CHUNK))[:, :, None]
    ours = cell.compile_and_run(query, key, value, cell.mask(ms.Tensor(hidden[:, None])))
    return exact(ours), attention(query, key, value, hidden)


def vision_attention(fused: bool, dtype: str) -> Case:
    """Attention of CLIP ViT-L/14 at 336 pixels: 577 tokens, 16 heads of size 64, no mask."""
    from mindone.models.share4v.nn.fused import FlashAttention

    cell = arithmetic(dtype, fused).attention(16, 16, 64, 577)
    if isinstance(cell, FlashAttention) != fused:
        return None
    query, key, value = inputs(dtype, *[(1, 16, 577, 64)] * 3)
    return exact(cell.compile_and_run(query, key, value)), attention(query, key, value, np.zeros((1, 577, 577), bool))


def decode_attention(kv_heads: int, dtype: str) -> Case:
    """Attention of one token per sequence over the cache; the sequences have 700 tokens and 1 token."""
    import mindspore as ms

    cell = arithmetic(dtype, True).one_query_attention(HEADS, kv_heads, HEAD_SIZE, SLOTS)
    if cell is None:
        return None
    cache_shape = (BATCH, kv_heads, SLOTS, HEAD_SIZE)
    query, key, value = inputs(dtype, (BATCH, HEADS, 1, HEAD_SIZE), cache_shape, cache_shape)
    lengths = np.array([700, 1])
    ours = cell.compile_and_run(query, key, value, ms.Tensor(lengths))
    return exact(ours), attention(query, key, value, np.arange(SLOTS) >= lengths[:, None, None])


CASES: dict[str, Callable[[str], Case]] = {
    "linear": linear,
    "embedding": partial(embedding, False),
    "layer_norm": partial(layer_norm, False),
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
    "fused_layer_norm": partial(layer_norm, True),
    "fused_embedding": partial(embedding, True),
    "fused_cache_write_prefill": partial(cache_scatter, CHUNK),
    "fused_cache_write_decode": partial(cache_scatter, 1),
    "int8_product": partial(integer_product, "int8"),
    "int4_product": partial(integer_product, "int4"),
}
