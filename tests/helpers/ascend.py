"""Stand-ins for Ascend's fused operators: their documented semantics and restrictions, in portable operators.

Written only from MindSpore's documentation (2.7.0 to 2.10.0, `mindspore.ops`), without code of the package, so that
layouts, the mask's polarity, scales and dtypes are stated twice, independently. What the documentation does not allow
raises an error; in a graph, when it is compiled. Arguments that the package does not pass are not implemented and raise
an error too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

from mindone.models.share4v.language.llama import LlamaForCausalLM
from mindone.models.share4v.nn.device_operators import DEVICES, DeviceOperators
from mindone.models.share4v.registry import LANGUAGE_MODELS, VISION_TOWERS
from mindone.models.share4v.vision.clip import CLIPVisionTower

HALF = (ms.float16, ms.bfloat16)
FLOATS = (ms.float16, ms.bfloat16, ms.float32)
UNBOUNDED = 2147483647


def need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def need_type(condition: bool, message: str) -> None:
    if not condition:
        raise TypeError(message)


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """y = x / sqrt(mean(x^2) + epsilon) * gamma over gamma's axes; x and gamma have the same dtype."""
    need_type(x.dtype in FLOATS, "x is not float16, float32 or bfloat16")
    need_type(gamma.dtype == x.dtype, "x and gamma have different types")
    need(0 < epsilon <= 1, "epsilon is not in (0, 1]")
    need(gamma.ndim <= x.ndim, "gamma has more axes than x")
    need(gamma.shape == x.shape[x.ndim - gamma.ndim :], "gamma's axes are not the last ones of x")
    axes = tuple(range(x.ndim - gamma.ndim, x.ndim))
    wide = x.astype(ms.float32)
    reciprocal = 1.0 / ops.sqrt(ops.mean(wide * wide, axes, True) + epsilon)
    return (wide * reciprocal * gamma.astype(ms.float32)).astype(x.dtype), reciprocal


def rotary_position_embedding(x: Tensor, cos: Tensor, sin: Tensor, mode: int = 0) -> Tensor:
    """mode 0: x * cos + concat(-x2, x1) * sin, with x1 and x2 the halves of the last axis."""
    need_type(x.dtype in FLOATS, "x is not float16, bfloat16 or float32")
    need_type(cos.dtype == x.dtype and sin.dtype == x.dtype, "x, cos and sin have different types")
    need(
        x.ndim == 4 and cos.ndim == 4 and sin.shape == cos.shape, "x, cos and sin have four axes, cos and sin one shape"
    )
    need(mode == 0, "the stand-in implements mode 0, rotate_half")
    size = x.shape[3]
    need(
        size % 2 == 0 and size < 896 and cos.shape[3] == size,
        "D must be even, less than 896, and equal to the tables' D",
    )
    need(layout_of(x.shape, cos.shape) != "", "cos fits no layout of x")
    first, second = x[..., : size // 2], x[..., size // 2 :]
    return x * cos + ops.concat((-second, first), -1) * sin


def layout_of(x: tuple[int, ...], table: tuple[int, ...]) -> str:
    """Return the documented layout of x for which `table` is valid, or an empty string.

    B and N are below 1000. Shapes that can be read as BNSD with B * N > 8S are excluded; the documentation excludes
    them where D is a multiple of 32 bytes.
    """
    one, two, three = x[0], x[1], x[2]
    sizes = table[:3]
    found = ""
    if sizes in ((1, 1, three), (one, 1, three), (one, two, three)):
        found = "BNSD" if one < 1000 and two < 1000 and one * two <= 8 * three else ""
    elif sizes in ((1, two, 1), (one, two, 1), (one, two, three)):
        found = "BSND" if one < 1000 and three < 1000 else ""
    elif sizes in ((one, 1, 1), (one, two, 1), (one, two, three)):
        found = "SBND" if two < 1000 and three < 1000 else ""
    return found


@dataclass(frozen=True)
class Attention:
    """The two attention operators, for query, key and value of `dtypes`.

    float32 is not documented for Ascend; the tests add it to compare the whole model with smaller tolerances.
    """

    dtypes: tuple[Any, ...] = HALF

    def flash_attention_score(self) -> Callable[..., Tensor]:
        dtypes = self.dtypes

        def operator(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            head_num: int,
            attn_mask: Tensor | None = None,
            keep_prob: float = 1.0,
            scalar_value: float = 1.0,
            pre_tokens: int = UNBOUNDED,
            next_tokens: int = UNBOUNDED,
            input_layout: str = "BSH",
            sparse_mode: int = 0,
        ) -> Tensor:
            """Softmax of scale * query key^T where attn_mask is 0 or False; 1 or True is discarded."""
            need(input_layout == "BNSD", "the stand-in implements the layout BNSD")
            need(sparse_mode == 0 and pre_tokens == UNBOUNDED and next_tokens == UNBOUNDED, "sparse_mode 0, no band")
            need(keep_prob == 1.0, "no dropout")
            check_heads(query, key, value, head_num, dtypes)
            batch, heads, rows, size = query.shape
            slots = key.shape[2]
            need(size % 16 == 0 and size <= 512, "D must be a multiple of 16, at most 512")
            need(heads <= 256 and batch <= 2048, "N1 is at most 256, B at most 2k")
            if attn_mask is None:
                return softmax_product(query, key, value, scalar_value, None)
            need_type(attn_mask.dtype in (ms.bool_, ms.uint8), "attn_mask is not bool or uint8")
            allowed = ((batch, heads, rows, slots), (batch, 1, rows, slots), (rows, slots))
            need(attn_mask.shape in allowed, "attn_mask is not (B, N1, S1, S2), (B, 1, S1, S2) or (S1, S2)")
            return softmax_product(query, key, value, scalar_value, attn_mask.astype(ms.bool_))

        return operator

    def incre_flash_attention(self) -> Callable[..., Tensor]:
        dtypes = self.dtypes

        def operator(
            query: Tensor,
            key: tuple[Tensor, ...],
            value: tuple[Tensor, ...],
            actual_seq_lengths: Tensor | None = None,
            num_heads: int = 1,
            input_layout: str = "BSH",
            scale_value: float = 1.0,
            num_key_value_heads: int = 0,
            inner_precise: int = 1,
        ) -> Tensor:
            """One query per sequence, over the first actual_seq_lengths slots; key and value are tuples of tensors."""
            need(input_layout == "BNSD", "the stand-in implements the layout BNSD")
            need(inner_precise in (0, 1), "inner_precise is 0 or 1")
            need_type(
                isinstance(key, (tuple, list)) and isinstance(value, (tuple, list)), "key or value is not a tuple"
            )
            need(len(key) == 1 and len(value) == 1, "the stand-in expects one tensor for the whole batch")
            keys, values = key[0], value[0]
            check_heads(query, keys, values, num_heads, dtypes)
            batch, heads, rows, size = query.shape
            need(rows == 1, "query has more than one row")
            need(heads <= 256 and size <= 512 and size % 16 == 0, "N is at most 256, D at most 512, a multiple of 16")
            kv_heads = heads if num_key_value_heads == 0 else num_key_value_heads
            need(keys.shape[1] == kv_heads and heads % kv_heads == 0, "key's heads are not num_key_value_heads")
            need(heads <= 64 * kv_heads, "a key/value head has more than 64 query heads")
            if actual_seq_lengths is None:
                return softmax_product(query, keys, values, scale_value, None)
            need_type(actual_seq_lengths.dtype == ms.int64, "actual_seq_lengths is not int64")
            need(actual_seq_lengths.shape == (batch,), "actual_seq_lengths is not (B,)")
            slots = ops.arange(keys.shape[2]).reshape(1, 1, 1, -1)
            discarded = slots >= actual_seq_lengths.reshape(-1, 1, 1, 1)
            return softmax_product(query, keys, values, scale_value, discarded)

        return operator


def layer_norm(
    x: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """(x - mean) / sqrt(variance + eps) * weight + bias over the axes of normalized_shape."""
    need_type(x.dtype in FLOATS, "x is not a float")
    need_type(isinstance(normalized_shape, (tuple, list)), "normalized_shape is not a tuple")
    need_type(isinstance(eps, float), "eps is not a float")
    need(
        len(normalized_shape) == 1 and x.shape[-1:] == tuple(normalized_shape), "normalized_shape is not x's last axis"
    )
    need(weight is not None and bias is not None, "the stand-in expects weight and bias")
    need(weight.shape == tuple(normalized_shape) == bias.shape, "weight or bias has another shape")
    need_type(weight.dtype == x.dtype == bias.dtype, "x, weight and bias have different types")
    wide = x.astype(ms.float32)
    centered = wide - wide.mean(-1, keep_dims=True)
    variance = ops.square(centered).mean(-1, keep_dims=True)
    return (centered / ops.sqrt(variance + eps) * weight.astype(ms.float32) + bias.astype(ms.float32)).astype(x.dtype)


def index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices of x along dim; the number of axes stays."""
    need_type(index.dtype in (ms.int32, ms.int64), "index is not int32 or int64")
    need(index.ndim == 1, "index has more than one axis")
    need(dim == 0, "the stand-in implements dim 0")
    return ops.gather(x, index, 0)


def narrow(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """`length` slices of x along dim, from `start`."""
    need(dim == 1, "the stand-in implements dim 1")
    need(start >= 0 and length > 0 and start + length <= x.shape[1], "start and length leave the axis")
    return x[:, start : start + length]


def kv_cache_scatter_update(var: Tensor, indices: Tensor, updates: Tensor, axis: int, reduce: str = "none") -> Tensor:
    """var[i, j, indices[i] + k] = updates[i, j, k], in place; for axis -2.

    The documentation excludes negative indices and writing behind the last slot; the stand-in then writes NaN
    everywhere, as a graph cannot raise an error.
    """
    need(axis == -2, "the stand-in implements axis -2")
    need(reduce == "update", "reduce is not 'update'")
    need(var.ndim == 4 and updates.ndim == 4, "var and updates do not have four axes")
    need(indices.ndim == 1 and indices.shape[0] == updates.shape[0], "there is not one index for each sequence")
    need_type(indices.dtype in (ms.int32, ms.int64), "indices are not int32 or int64")
    need_type(updates.dtype == var.dtype, "var and updates have different types")
    need(updates.shape[0] <= var.shape[0], "there are more updates than sequences")
    need(updates.shape[1] == var.shape[1] and updates.shape[3] == var.shape[3], "other axes than axis differ")
    batch, heads, slots, size = var.shape
    need(updates.shape[0] == batch, "the stand-in expects an update of every sequence")
    count = updates.shape[2]
    first = indices.astype(ms.int32).reshape(-1, 1)  # [B, 1]
    source = ops.arange(slots).astype(ms.int32).reshape(1, -1) - first  # [B, S]: which update a slot receives
    receives = ops.logical_and(source >= 0, source < count).reshape(batch, 1, slots, 1)
    columns = ops.broadcast_to(ops.clamp(source, 0, count - 1).reshape(batch, 1, slots, 1), (batch, heads, slots, size))
    moved = ops.gather_elements(updates.astype(ms.float32), 2, columns)
    wrong = ops.logical_or(first < 0, first + count > slots).astype(ms.float32).sum() > 0
    values = ops.select(receives, moved, var.astype(ms.float32))
    values = ops.select(ops.broadcast_to(wrong, values.shape), ops.full_like(values, float("nan")), values)
    return ops.assign(var, values.astype(var.dtype))


def weight_quant_batch_matmul(
    transpose_x: bool = False, transpose_weight: bool = False, antiquant_group_size: int = 0
) -> Callable[..., Tensor]:
    """x @ ((weight + antiquant_offset) * antiquant_scale), with a scale per output or per output and group of inputs.

    A group size means int4 here, in int8 of two values, because a CPU has no operators for MindSpore's type of them.
    """
    group = antiquant_group_size
    need(not transpose_x, "the stand-in does not transpose x")

    def operator(
        x: Tensor,
        weight: Tensor,
        antiquant_scale: Tensor,
        antiquant_offset: Tensor | None = None,
        quant_scale: Tensor | None = None,
        quant_offset: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        need_type(x.dtype in HALF, "x is not float16 or bfloat16")
        need(x.ndim == 2 and weight.ndim == 2, "x and weight do not have two axes")
        need_type(weight.dtype == ms.int8, "weight is not int8")
        need_type(antiquant_scale.dtype == x.dtype, "antiquant_scale has another type than x")
        need(
            quant_scale is None and quant_offset is None and bias is None,
            "the stand-in has no bias and no requantizing",
        )
        if antiquant_offset is not None:
            need_type(antiquant_offset.dtype == x.dtype, "antiquant_offset has another type than x")
            need(antiquant_offset.shape == antiquant_scale.shape, "antiquant_offset has another shape than the scale")
        inputs = x.shape[1]
        if group == 0:
            columns = weight.transpose(1, 0) if transpose_weight else weight
            outputs = columns.shape[1]
            need(antiquant_scale.shape in ((outputs,), (1, outputs)), "antiquant_scale is not (n,) or (1, n)")
            scale = antiquant_scale.reshape(1, outputs)
            offset = 0 if antiquant_offset is None else antiquant_offset.reshape(1, outputs).astype(ms.float32)
        else:
            need(not transpose_weight, "the stand-in does not transpose int4")
            need(group % 32 == 0 and 32 <= group <= inputs - 1, "the group size is not a multiple of 32 in [32, k - 1]")
            columns = unpacked(weight)
            outputs = columns.shape[1]
            groups = -(-inputs // group)
            need(antiquant_scale.shape == (groups, outputs), "antiquant_scale is not (k / group_size, n)")
            scale = ops.repeat_interleave(antiquant_scale.astype(ms.float32), group, 0)[:inputs]
            offset = 0
            if antiquant_offset is not None:
                offset = ops.repeat_interleave(antiquant_offset.astype(ms.float32), group, 0)[:inputs]
        need(columns.shape[0] == inputs, "x and weight have different k")
        wide = (columns.astype(ms.float32) + offset) * scale.astype(ms.float32)
        return ops.matmul(x.astype(ms.float32), wide).astype(x.dtype)

    return operator


def unpacked(pairs: Tensor) -> Tensor:
    """int8 [k, n / 2] -> float32 [k, n]: column 2i is in the low four bits of a byte, 2i + 1 in the high ones."""
    wide = pairs.astype(ms.float32)
    unsigned = wide + 256.0 * (wide < 0).astype(ms.float32)
    high = ops.floor(unsigned / 16.0)
    both = ops.stack((unsigned - 16.0 * high, high), -1).reshape(pairs.shape[0], -1)
    return both - 16.0 * (both >= 8).astype(ms.float32)


def check_heads(query: Tensor, key: Tensor, value: Tensor, heads: int, dtypes: tuple[Any, ...]) -> None:
    need(query.ndim == 4 and key.ndim == 4, "query and key are not (B, N, S, D)")
    need_type(query.dtype in dtypes, "query is not float16 or bfloat16")
    need_type(key.dtype == query.dtype and value.dtype == query.dtype, "query, key and value have different types")
    need(value.shape == key.shape, "key and value have different shapes")
    need(query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3], "query and key differ in B or D")
    need(query.shape[1] == heads and heads % key.shape[1] == 0, "N1 is not head_num, or not a multiple of N2")


def softmax_product(query: Tensor, key: Tensor, value: Tensor, scale: float, discarded: Tensor | None) -> Tensor:
    """Attention in float32 with repeated key/value heads. Returns [B, N1, S1, D]."""
    need_type(isinstance(scale, float), "the scale is not a float")
    groups = query.shape[1] // key.shape[1]
    wide_key = ops.repeat_interleave(key.astype(ms.float32), groups, 1)
    wide_value = ops.repeat_interleave(value.astype(ms.float32), groups, 1)
    scores = ops.matmul(query.astype(ms.float32), wide_key.swapaxes(-1, -2)) * scale
    if discarded is not None:
        scores = ops.masked_fill(scores, discarded, float("-inf"))
    scores = scores - ops.amax(scores, -1, True)
    weights = ops.exp(scores)
    return ops.matmul(weights / weights.sum(-1, keepdims=True), wide_value).astype(query.dtype)


def stand_ins(dtypes: tuple[Any, ...] = HALF) -> DeviceOperators:
    """Return Ascend's row of the operator table with stand-ins; their attention accepts `dtypes`."""
    device, attention = DEVICES["Ascend"][0], Attention(dtypes)
    return replace(
        device,
        rms_norm=rms_norm,
        rotary_position_embedding=rotary_position_embedding,
        flash_attention_score=attention.flash_attention_score(),
        incre_flash_attention=attention.incre_flash_attention(),
        layer_norm=layer_norm,
        kv_cache_scatter_update=kv_cache_scatter_update,
        index_select=index_select,
        narrow=narrow,
        weight_quant_batch_matmul=weight_quant_batch_matmul,
        int4_pair=ms.int8,
        flash_limits=replace(device.flash_limits, dtypes=dtypes),
        incremental_limits=replace(device.incremental_limits, dtypes=dtypes),
    )


def portable(operators: DeviceOperators) -> DeviceOperators:
    """Return the same device without its fused operators."""
    names = [field.name for field in fields(operators) if callable(getattr(operators, field.name))]
    return replace(operators, **dict.fromkeys(names))


def fused(dtype: str) -> DeviceOperators:
    """Return the stand-ins for weights of `dtype`; attention accepts float32 if the weights are float32."""
    return stand_ins(FLOATS if dtype == "float32" else HALF)


class StandInTower(CLIPVisionTower):
    """CLIP as on Ascend, with stand-ins."""

    def __init__(self, config: Any, dtype: str = "float32") -> None:
        super().__init__(config, dtype, fused(dtype))


class StandInLlama(LlamaForCausalLM):
    """LLaMA as on Ascend, with stand-ins."""

    def __init__(self, config: Any, dtype: str = "float32") -> None:
        super().__init__(config, dtype, fused(dtype))


class PortableTower(CLIPVisionTower):
    """CLIP as on Ascend, without fused operators."""

    def __init__(self, config: Any, dtype: str = "float32") -> None:
        super().__init__(config, dtype, portable(fused(dtype)))


class PortableLlama(LlamaForCausalLM):
    """LLaMA as on Ascend, without fused operators."""

    def __init__(self, config: Any, dtype: str = "float32") -> None:
        super().__init__(config, dtype, portable(fused(dtype)))


# Arguments of Share4V and from_pretrained; call `register` first.
STAND_INS = {"language_backend": "ascend-stand-ins", "vision_backend": "ascend-stand-ins"}
PORTABLE = {"language_backend": "ascend-portable", "vision_backend": "ascend-portable"}


def register() -> None:
    """Register the components under these names."""
    for kind, name in (("StandIn", "ascend-stand-ins"), ("Portable", "ascend-portable")):
        LANGUAGE_MODELS.register(name, f"helpers.ascend:{kind}Llama")
        VISION_TOWERS.register(name, f"helpers.ascend:{kind}Tower")
