"""What each device supports: the dtypes it computes in, and its fused operators with their limits.

The limits come from MindSpore's documentation (2.7.0 to 2.10.0, operators of the same names in `mindspore.ops`) and
from CANN's pages on IncreFlashAttention (query heads per key/value head), InplaceScatterUpdate (batch size) and
WeightQuantBatchMatmulV2 (integer weights). docs/hardware.md has the full table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mindspore as ms
from mindspore import mint, ops

SWITCH = "SHARE4V_FUSED_OPERATORS"
Operator = Callable[..., Any]


@dataclass(frozen=True)
class AttentionLimits:
    """Limits of an attention operator; outside of them the portable implementation is used.

    Attributes:
        dtypes: dtypes of query, key and value.
        max_head_size, head_size_multiple: largest head size, and a number of which it must be a multiple.
        max_heads: largest number of query heads.
        max_group: largest number of query heads per key/value head.
        max_batch: largest batch size.
        max_length: largest number of keys per sequence.
    """

    dtypes: tuple[Any, ...] = (ms.float16, ms.bfloat16)
    max_head_size: int = 512
    head_size_multiple: int = 16
    max_heads: int = 256
    max_group: int = 256
    max_batch: int = 2048
    max_length: int = 512 * 1024

    def allow(self, dtype: Any, heads: int, kv_heads: int, head_size: int, length: int) -> bool:
        """Return whether a model may use the operator; the batch size is checked on each call."""
        return (
            dtype in self.dtypes
            and head_size % self.head_size_multiple == 0
            and head_size <= self.max_head_size
            and heads <= self.max_heads
            and heads <= kv_heads * self.max_group
            and length <= self.max_length
        )


@dataclass(frozen=True)
class RotaryLimits:
    """Limits of the rotary operator, which requires an even head size; the bounds are exclusive.

    There is no limit on the batch size, because every batch is passed as one sequence.
    """

    head_size_bound: int = 896
    heads_bound: int = 1000

    def allow(self, heads: int, head_size: int) -> bool:
        """Return whether a model may use the operator."""
        return head_size % 2 == 0 and head_size < self.head_size_bound and heads < self.heads_bound


@dataclass(frozen=True)
class IntegerLimits:
    """Limits of the product with integer weights.

    Attributes:
        max_size: largest number of inputs and of outputs. The documentation gives none for the layouts used here; the
            bound is that of its other layouts, and only vocabularies come near it.
        group: weights of one output that share a scale in int4; the documentation asks for a multiple of 32 that is
            less than the number of inputs.
    """

    max_size: int = 65535
    group: int = 32

    def allow(self, dtype: str, in_features: int, out_features: int) -> bool:
        """Return whether a matrix may have integer weights of `dtype`, "int8" or "int4"."""
        if max(in_features, out_features) > self.max_size:
            return False
        # int4: two outputs share a byte, and the last group is complete.
        return dtype == "int8" or (out_features % 2 == 0 and in_features % self.group == 0 < in_features - self.group)


@dataclass(frozen=True)
class DeviceOperators:
    """A device's dtypes and fused operators; each operator has the signature of its namesake in `mindspore.ops`.

    Attributes:
        dtypes: names of the dtypes in which the device computes.
        computes_in_weight_dtype: whether activations have the weights' dtype; otherwise they are float32.
        rms_norm, rotary_position_embedding, flash_attention_score, incre_flash_attention, layer_norm,
            kv_cache_scatter_update, index_select, narrow: operators; None selects the portable implementation.
        weight_quant_batch_matmul: makes the operator from (transpose_x, transpose_weight, antiquant_group_size). None:
            the device has no integer weights, for which there is no portable implementation.
        rotary_limits, flash_limits, incremental_limits, integer_limits: limits of the operators.
        max_scatter_batch: largest batch of kv_cache_scatter_update.
        int4_pair: MindSpore's type of a byte that holds two int4.

    Example:
        >>> from mindone.models.share4v.nn.device_operators import device_operators
        >>> device_operators().flash_attention_score is None  # on a CPU
        True
    """

    dtypes: tuple[str, ...] = ("float32", "float16")
    computes_in_weight_dtype: bool = False
    rms_norm: Operator | None = None
    rotary_position_embedding: Operator | None = None
    flash_attention_score: Operator | None = None
    incre_flash_attention: Operator | None = None
    layer_norm: Operator | None = None
    kv_cache_scatter_update: Operator | None = None
    index_select: Operator | None = None
    narrow: Operator | None = None
    weight_quant_batch_matmul: Operator | None = None
    rotary_limits: RotaryLimits = RotaryLimits()
    flash_limits: AttentionLimits = AttentionLimits()
    incremental_limits: AttentionLimits = AttentionLimits(max_group=64, max_batch=65536)
    integer_limits: IntegerLimits = IntegerLimits()
    # The operator holds one int64 index per sequence in a core's buffer, of which the smallest have 192 KB.
    max_scatter_batch: int = 16384
    int4_pair: Any = ms.qint4x2


# Operator -> how it is taken from mindspore.ops. A primitive without parameters is made once.
_SOURCES: dict[str, Callable[[], Any]] = {
    "rms_norm": lambda: ops.rms_norm,
    "rotary_position_embedding": lambda: ops.rotary_position_embedding,
    "flash_attention_score": lambda: ops.flash_attention_score,
    "incre_flash_attention": lambda: ops.incre_flash_attention,
    "layer_norm": lambda: ops.layer_norm,
    "kv_cache_scatter_update": lambda: ops.auto_generate.KVCacheScatterUpdate(),
    "index_select": lambda: mint.index_select,
    "narrow": lambda: mint.narrow,
    "weight_quant_batch_matmul": lambda: ops.auto_generate.WeightQuantBatchMatmul,
}
FUSED = tuple(_SOURCES)
PORTABLE = DeviceOperators()
# MindSpore's device target -> what it supports, and the names of its operators.
DEVICES: dict[str, tuple[DeviceOperators, tuple[str, ...]]] = {
    "CPU": (PORTABLE, ()),
    "Ascend": (DeviceOperators(("float32", "float16", "bfloat16"), computes_in_weight_dtype=True), FUSED),
}


def device_operators(target: str | None = None) -> DeviceOperators:
    """Return the operators of a device.

    The portable implementation replaces operators that the installed MindSpore lacks, or that the environment variable
    `SHARE4V_FUSED_OPERATORS` excludes: "all" (default), "none", or a list such as "rms_norm,flash_attention_score".

    Args:
        target: "CPU" or "Ascend"; by default the target of MindSpore's context. Unknown targets are treated as a CPU.

    Raises:
        ValueError: the environment variable names an unknown operator.
    """
    supported, fused = DEVICES.get(target or ms.get_context("device_target"), DEVICES["CPU"])
    enabled = enabled_operators(os.environ.get(SWITCH, "all"))
    found: dict[str, Any] = {name: _installed(name) for name in fused if name in enabled}
    return replace(supported, **found)


def _installed(name: str) -> Any:
    """Return an operator, or None if the installed MindSpore does not have it."""
    try:
        return _SOURCES[name]()
    except AttributeError:
        return None


def enabled_operators(setting: str) -> tuple[str, ...]:
    """Parse the environment variable's value: "all", "none", or operator names separated by commas.

    Raises:
        ValueError: a name is not one of FUSED.
    """
    names = tuple(name.strip() for name in setting.split(",") if name.strip())
    if names in ((), ("all",), ("none",)):
        return () if names == ("none",) else FUSED
    unknown = [name for name in names if name not in FUSED]
    if unknown:
        raise ValueError(f"{SWITCH} names {', '.join(unknown)}: expected all, none, or names of {', '.join(FUSED)}")
    return names
