"""Cells that use a device's fused operators within their limits, and the portable implementation otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor, nn, ops

from .device_operators import SWITCH, DeviceOperators, Operator, device_operators
from .integer_linear import IntegerLinear
from .layers import DTYPES, MASKED, Embedding, LayerNorm, Linear, RMSNorm, activation_dtype, attention, weight_dtype

INTEGERS = ("int8", "int4")


@dataclass(frozen=True)
class Arithmetic:
    """The dtypes and operators of a component's cells.

    Attributes:
        weights: dtype of the weight matrices that are floats.
        activations: dtype of the activations.
        operators: the device's operators.
        integers: type of the language model's matrices, "int8" or "int4"; None if they are floats too.
    """

    weights: ms.Type
    activations: ms.Type
    operators: DeviceOperators
    integers: str | None = None

    @classmethod
    def of(cls, dtype: str, operators: DeviceOperators | None = None, computes_in: str = "float16") -> Arithmetic:
        """Return the arithmetic for weights of `dtype`.

        Args:
            dtype: "float32", "float16", "bfloat16", "int8" or "int4".
            operators: by default those of MindSpore's current device.
            computes_in: dtype of the activations, and of the weights that stay floats, if `dtype` is an integer type.

        Raises:
            ValueError: the dtype is unknown, or the device does not support it.
        """
        operators = operators or device_operators()
        if dtype not in INTEGERS:
            return cls(weight_dtype(dtype, operators), activation_dtype(dtype, operators), operators)
        if operators.weight_quant_batch_matmul is None:
            raise ValueError(
                f"dtype {dtype!r} needs the operator weight_quant_batch_matmul, which MindSpore does not offer on this "
                f"device or which {SWITCH} leaves out: use one of {', '.join(map(repr, operators.dtypes))}"
            )
        return cls(DTYPES[computes_in], DTYPES[computes_in], operators, dtype)

    def linear(self, in_features: int, out_features: int, bias: bool, integers: str | None) -> nn.Cell:
        """Return a linear layer with weights of type `integers`; floats if that is None or the sizes exclude it."""
        limits = self.operators.integer_limits
        if integers is None or not limits.allow(integers, in_features, out_features):
            return Linear(in_features, out_features, bias, self.weights)
        return IntegerLinear(in_features, out_features, bias, integers, self.activations, self.operators)

    def embedding(self, num_embeddings: int, dim: int) -> Embedding:
        """Return a table of embeddings, [num_embeddings, dim]."""
        return Embedding(num_embeddings, dim, self.weights, self.activations, self.operators.index_select)

    def rms_norm(self, dim: int, eps: float) -> RMSNorm:
        """Return an RMSNorm over `dim` values."""
        return RMSNorm(dim, eps, self.operators.rms_norm)

    def layer_norm(self, dim: int, eps: float) -> LayerNorm:
        """Return a LayerNorm over `dim` values."""
        return LayerNorm(dim, eps, self.operators.layer_norm)

    def attention(self, heads: int, kv_heads: int, head_size: int, length: int) -> Attention:
        """Return attention for any number of queries; `length` is the maximum number of keys of a sequence.

        The activations' dtype is not considered: in training in mixed precision it is not that of inference.
        """
        limits, operator = self.operators.flash_limits, self.operators.flash_attention_score
        if operator is None or not limits.allow(limits.dtypes[0], heads, kv_heads, head_size, length):
            return Attention()
        return FlashAttention(operator, heads, head_size, limits.max_batch, limits.dtypes)

    def one_query_attention(
        self, heads: int, kv_heads: int, head_size: int, length: int
    ) -> IncrementalAttention | None:
        """Return attention of one query per sequence over its first keys; None if the device has no operator for it."""
        limits, operator = self.operators.incremental_limits, self.operators.incre_flash_attention
        if operator is None or not limits.allow(self.activations, heads, kv_heads, head_size, length):
            return None
        return IncrementalAttention(operator, heads, kv_heads, head_size, limits.max_batch)


class Attention(nn.Cell):
    """Portable attention (`layers.attention`), with its mask."""

    def mask(self, hidden: Tensor) -> Tensor:
        """Convert `hidden`, bool [B, 1, T, S] or [1, 1, T, S] (True: hidden from the query), to a mask."""
        return hidden.astype(ms.float32) * MASKED

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query [B, Hq, T, D], key and value [B, Hkv, S, D] -> [B, T, Hq * D]."""
        return attention(query, key, value, mask)


class FlashAttention(Attention):
    """Attention with `flash_attention_score`, whose mask is True where a key is hidden.

    Batches larger than `max_batch`, and queries of other dtypes than `dtypes`, use the portable implementation.
    """

    def __init__(
        self, operator: Operator, heads: int, head_size: int, max_batch: int, dtypes: tuple[ms.Type, ...]
    ) -> None:
        super().__init__()
        self.dtypes = dtypes
        self.operator = operator
        self.heads = heads
        self.head_size = head_size
        self.max_batch = max_batch
        self.scale = 1.0 / math.sqrt(head_size)

    def mask(self, hidden: Tensor) -> Tensor:
        # For a mask shared by all sequences, the operator documents only [T, S], not [1, 1, T, S].
        return hidden.reshape(hidden.shape[2:]) if hidden.shape[0] == 1 else hidden

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, _, length, _ = query.shape
        if batch > self.max_batch or query.dtype not in self.dtypes:
            return attention(query, key, value, None if mask is None else mask.astype(ms.float32) * MASKED)
        # sparse_mode 0 without bounds on the tokens before and after: only the mask hides keys.
        attended = self.operator(  # [B, Hq, T, D]
            query,
            key,
            value,
            self.heads,
            attn_mask=mask,
            scalar_value=self.scale,
            input_layout="BNSD",
            sparse_mode=0,
        )
        return ops.transpose(attended, (0, 2, 1, 3)).reshape(batch, length, self.heads * self.head_size)


class IncrementalAttention(nn.Cell):
    """Attention of one query per sequence over the first slots of a cache, with `incre_flash_attention`."""

    def __init__(self, operator: Operator, heads: int, kv_heads: int, head_size: int, max_batch: int) -> None:
        super().__init__()
        self.max_batch = max_batch
        self.operator = operator
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_size = head_size
        self.scale = 1.0 / math.sqrt(head_size)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
        """query [B, Hq, 1, D], key and value [B, Hkv, S, D] of which the first `lengths`, int64 [B], are attended to.

        Returns [B, 1, Hq * D].
        """
        attended = self.operator(  # [B, Hq, 1, D]
            query,
            (key,),
            (value,),
            actual_seq_lengths=lengths,
            num_heads=self.heads,
            input_layout="BNSD",
            scale_value=self.scale,
            num_key_value_heads=self.kv_heads,
            inner_precise=0,  # of two modes for float16, the more precise
        )
        return attended.reshape(query.shape[0], 1, self.heads * self.head_size)  # with T = 1 no transpose is needed
