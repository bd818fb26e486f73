"""Rotary position embedding (Su et al. 2021) as MindSpore cells; rope_tables.py has its tables."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from ..nn.device_operators import DeviceOperators
from ..nn.layers import split_heads


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, T, D] with tables [B, 1, T, D]; dimension i pairs with i + D / 2, as in Hugging Face's code."""
    wide = x.astype(ms.float32)
    first, second = ops.Split(-1, 2)(wide)
    rotated = ops.Concat(-1)((-second, first))
    return (wide * cos + rotated * sin).astype(x.dtype)


class Rotary(nn.Cell):
    """Splits a projection into heads and rotates each of them, in float32.

    A device's `rotary_position_embedding` is called with the tokens of all sequences as one sequence, [1, B * T, H, D],
    and tables [1, B * T, 1, D]. With heads before tokens its documentation excludes batches with more heads than eight
    times the tokens, which every decoding step is. A single head could still be interpreted that way, so it is passed
    as [1, 1, B * T, D].
    """

    def __init__(self, heads: int, head_size: int, operators: DeviceOperators) -> None:
        super().__init__()
        self.heads, self.head_size = heads, head_size
        self.operator: Any = operators.rotary_position_embedding
        self.is_fused = self.operator is not None and operators.rotary_limits.allow(heads, head_size)

    def construct(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, H * D], tables float32 [B, 1, T, D] -> [B, H, T, D]."""
        if self.is_fused:
            batch, length, _ = x.shape
            rows, size = batch * length, self.head_size
            tokens = (1, 1, rows, size) if self.heads == 1 else (1, rows, self.heads, size)
            table = (1, 1, rows, size) if self.heads == 1 else (1, rows, 1, size)
            wide = x.astype(ms.float32).reshape(tokens)
            rotated = self.operator(wide, cos.reshape(table), sin.reshape(table), 0)
            return split_heads(rotated.astype(x.dtype).reshape(x.shape), self.heads, self.head_size)
        return apply_rope(split_heads(x, self.heads, self.head_size), cos, sin)
