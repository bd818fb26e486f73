"""Cells on a device's fused operators, each with the portable path for what the operator does not take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor, nn

from .device_operators import DeviceOperators, Operator, device_operators
from .layers import MASKED, RMSNorm, activation_dtype, attention, weight_dtype


@dataclass(frozen=True)
class Arithmetic:
    """The types and operators that a component's cells compute with.

    Attributes:
        weights: type of the weight matrices.
        activations: type of what goes between the cells.
        operators: of the device.
    """

    weights: ms.Type
    activations: ms.Type
    operators: DeviceOperators

    @classmethod
    def of(cls, dtype: str, operators: DeviceOperators | None = None) -> Arithmetic:
        """Return what cells of weights `dtype` compute with; `operators` are by default those of MindSpore's device.

        Raises:
            ValueError: the dtype is not known, or the device does not compute in it.
        """
        operators = operators or device_operators()
        return cls(weight_dtype(dtype, operators), activation_dtype(dtype, operators), operators)

    def rms_norm(self, dim: int, eps: float) -> RMSNorm:
        """Return the norm over `dim` values."""
        return RMSNorm(dim, eps, self.operators.rms_norm)

    def attention(self, heads: int, kv_heads: int, head_size: int, length: int) -> Attention:
        """Return attention of many queries; `length` is the most keys that a text may have."""
        limits, operator = self.operators.flash_limits, self.operators.flash_attention_score
        if operator is None or not limits.allow(self.activations, heads, kv_heads, head_size, length):
            return Attention()
        return FlashAttention(operator, heads, head_size, limits.texts)

    def one_query_attention(
        self, heads: int, kv_heads: int, head_size: int, length: int
    ) -> IncrementalAttention | None:
        """Return attention of one query a text over its first keys; None where `attention` serves for it too."""
        limits, operator = self.operators.incremental_limits, self.operators.incre_flash_attention
        if operator is None or not limits.allow(self.activations, heads, kv_heads, head_size, length):
            return None
        return IncrementalAttention(operator, heads, kv_heads, head_size, limits.texts)


class Attention(nn.Cell):
    """`layers.attention` with a mask that says which keys are hidden."""

    def mask(self, hidden: Tensor) -> Tensor:
        """Turn hidden, bool [B, 1, T, S] or [1, 1, T, S] (True: this query must not see this key), into a mask."""
        return hidden.astype(ms.float32) * MASKED

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query [B, Hq, T, D], key and value [B, Hkv, S, D] -> [B, T, Hq * D]."""
        return attention(query, key, value, mask)


class FlashAttention(Attention):
    """Attention by `flash_attention_score`, whose mask is True where a key is discarded."""

    def __init__(self, operator: Operator, heads: int, head_size: int, texts: int) -> None:
        super().__init__()
        self.operator, self.heads, self.head_size, self.texts = operator, heads, head_size, texts
        self.scale = 1.0 / math.sqrt(head_size)

    def mask(self, hidden: Tensor) -> Tensor:
        # One mask for all texts is documented as [T, S] alone, not as [1, 1, T, S].
        return hidden.reshape(hidden.shape[2:]) if hidden.shape[0] == 1 else hidden

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, _, length, _ = query.shape
        if batch > self.texts:
            return attention(query, key, value, None if mask is None else mask.astype(ms.float32) * MASKED)
        # sparse_mode 0 with no bound on the tokens before and after: the mask alone says what is seen.
        mixed = self.operator(
            query,
            key,
            value,
            self.heads,
            attn_mask=mask,
            scalar_value=self.scale,
            input_layout="BNSD",
            sparse_mode=0,
        )
        return mixed.transpose(0, 2, 1, 3).reshape(batch, length, self.heads * self.head_size)


class IncrementalAttention(nn.Cell):
    """Attention of one query a text by `incre_flash_attention`, over the first slots of a cache."""

    def __init__(self, operator: Operator, heads: int, kv_heads: int, head_size: int, texts: int) -> None:
        super().__init__()
        self.texts = texts
        self.operator, self.heads, self.kv_heads, self.head_size = operator, heads, kv_heads, head_size
        self.scale = 1.0 / math.sqrt(head_size)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
        """query [B, Hq, 1, D], key and value [B, Hkv, S, D] of which lengths int64 [B] count -> [B, 1, Hq * D]."""
        mixed = self.operator(
            query,
            (key,),
            (value,),
            actual_seq_lengths=lengths,
            num_heads=self.heads,
            input_layout="BNSD",
            scale_value=self.scale,
            num_key_value_heads=self.kv_heads,
            inner_precise=0,  # 0 is the precise of two modes for float16
        )
        return mixed.reshape(query.shape[0], 1, self.heads * self.head_size)  # [B, Hq, 1, D]: heads lie side by side
