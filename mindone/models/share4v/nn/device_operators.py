"""What a device offers the cells: types it computes in, and fused operators, by a table of devices.

The limits are those of MindSpore's documentation (2.7.0 to 2.10.0, function of the same name under `mindspore.ops`)
and, for the group, of CANN's page of IncreFlashAttention. docs/hardware.md has the whole table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mindspore as ms
from mindspore import ops

SWITCH = "SHARE4V_FUSED_OPERATORS"
Operator = Callable[..., Any]


@dataclass(frozen=True)
class AttentionLimits:
    """What an attention operator takes; where a model lies outside, the portable path computes.

    Attributes:
        dtypes: of query, key and value.
        head_size, head_size_step: the largest head, and what it must be a multiple of.
        heads: most query heads.
        group: most query heads of one key/value head.
        texts: largest batch.
        length: most keys of a text.
    """

    dtypes: tuple[Any, ...] = (ms.float16, ms.bfloat16)
    head_size: int = 512
    head_size_step: int = 16
    heads: int = 256
    group: int = 256
    texts: int = 2048
    length: int = 512 * 1024

    def allow(self, dtype: Any, heads: int, kv_heads: int, head_size: int, length: int) -> bool:
        """Whether a model may use the operator; the batch is known later."""
        return (
            dtype in self.dtypes
            and head_size % self.head_size_step == 0
            and head_size <= self.head_size
            and heads <= self.heads
            and heads <= kv_heads * self.group
            and length <= self.length
        )


@dataclass(frozen=True)
class RotaryLimits:
    """What the rotary operator takes: an even head size, and less than these; it gets every batch as one text."""

    head_size: int = 896
    heads: int = 1000

    def allow(self, heads: int, head_size: int) -> bool:
        """Whether a model may use the operator."""
        return head_size % 2 == 0 and head_size < self.head_size and heads < self.heads


@dataclass(frozen=True)
class DeviceOperators:
    """What cells are built on; every operator is called as the function of its name in `mindspore.ops`.

    Attributes:
        dtypes: names of the types whose arithmetic the device has.
        computes_in_weight_dtype: activations have the weights' type; else they are float32.
        rms_norm, rotary_position_embedding, flash_attention_score, incre_flash_attention: None leaves the work to the
            portable cells.
        rotary_limits, flash_limits, incremental_limits: what the operators take.

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
    rotary_limits: RotaryLimits = RotaryLimits()
    flash_limits: AttentionLimits = AttentionLimits()
    incremental_limits: AttentionLimits = AttentionLimits(group=64, texts=65536)


FUSED = ("rms_norm", "rotary_position_embedding", "flash_attention_score", "incre_flash_attention")
PORTABLE = DeviceOperators()
# MindSpore's device target -> what it offers, and the names in mindspore.ops of its fused operators.
DEVICES: dict[str, tuple[DeviceOperators, tuple[str, ...]]] = {
    "CPU": (PORTABLE, ()),
    "Ascend": (DeviceOperators(("float32", "float16", "bfloat16"), computes_in_weight_dtype=True), FUSED),
}


def device_operators(target: str | None = None) -> DeviceOperators:
    """Return what MindSpore's device offers.

    An operator that this MindSpore does not have, or that `SHARE4V_FUSED_OPERATORS` leaves out ("none", or a list such
    as "rms_norm,flash_attention_score"; "all" by default), is left to the portable cells.

    Args:
        target: "CPU" or "Ascend"; by default MindSpore's context says. One that no row knows is taken as a CPU.

    Raises:
        ValueError: the environment variable names an operator that is not known.
    """
    offered, fused = DEVICES.get(target or ms.get_context("device_target"), DEVICES["CPU"])
    wanted = switched_on(os.environ.get(SWITCH, "all"))
    found: dict[str, Any] = {name: getattr(ops, name, None) for name in fused if name in wanted}
    return replace(offered, **found)


def switched_on(setting: str) -> tuple[str, ...]:
    """Read the environment variable's value: "all", "none", or names with commas between.

    Raises:
        ValueError: a name is not one of FUSED.
    """
    named = tuple(name.strip() for name in setting.split(",") if name.strip())
    if named in ((), ("all",), ("none",)):
        return () if named == ("none",) else FUSED
    unknown = [name for name in named if name not in FUSED]
    if unknown:
        raise ValueError(f"{SWITCH} names {', '.join(unknown)}: expected all, none, or names of {', '.join(FUSED)}")
    return named
