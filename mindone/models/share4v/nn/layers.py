"""The few layers everything is built of, with Hugging Face's parameter names.

MindSpore's own `nn.Dense`, `nn.LayerNorm` and `nn.Embedding` are not used: the first transposes its weight at every
call on a CPU, the others name their parameters gamma, beta and embedding_table.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from .device_operators import DeviceOperators, Operator, device_operators

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}
# Finite, so that a row in which every key is masked gives an average and not NaN; far below any attention score.
MASKED = -1e9


def weight_dtype(name: str, operators: DeviceOperators | None = None) -> ms.Type:
    """Return MindSpore's type for the name of a weight type.

    Args:
        name: one of `DTYPES`.
        operators: of the device; by default of the one that MindSpore's context names.

    Raises:
        ValueError: the name is not one of `DTYPES`, or the device does not compute in it.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not supported: expected one of {', '.join(DTYPES)}")
    offered = (operators or device_operators()).dtypes
    if name not in offered:
        raise ValueError(
            f"dtype {name!r} needs an Ascend, since MindSpore does not compute in it on a CPU: use "
            f"{' or '.join(repr(other) for other in offered)}, as which a checkpoint of any type can be loaded"
        )
    return DTYPES[name]


def activation_dtype(name: str, operators: DeviceOperators | None = None) -> ms.Type:
    """Return the type that activations have for weights of type `name`.

    A CPU computes in float32 whatever the weights are (its float16 products are 5 to 8 times slower, and less exact);
    an Ascend computes in the weights' type.
    """
    operators = operators or device_operators()
    weights = weight_dtype(name, operators)
    return weights if operators.computes_in_weight_dtype else ms.float32


def _matrix(shape: tuple[int, ...], dtype: ms.Type) -> Parameter:
    return Parameter(initializer(Normal(0.02), shape, dtype))


def _vector(size: int, value: str) -> Parameter:
    # Vectors are a thousandth of the weights; they stay float32 whatever type the matrices have.
    return Parameter(initializer(value, (size,), ms.float32))


def widened(weight: Tensor, x: Tensor) -> Tensor:
    """Return `weight` in the type of `x`.

    MindSpore casts a parameter as soon as a graph begins, since nothing comes before it, and holds the wide copies of
    all weights at once. Waiting for `x` makes each cast's memory free again before the next one.
    """
    return weight if weight.dtype == x.dtype else ops.depend(weight, x).astype(x.dtype)


class Linear(nn.Cell):
    """y = x W^T + b over the last axis; `weight` is [out, in] as in torch.nn.Linear."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: ms.Type = ms.float32) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = _matrix((out_features, in_features), dtype)
        self.bias = _vector(out_features, "zeros") if bias else None
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)  # [..., I] -> [R, I]
        y = self.matmul(rows, widened(self.weight, rows))  # [R, O]
        if self.bias is not None:
            y = y + self.bias.astype(x.dtype)
        return y.reshape((*x.shape[:-1], self.out_features))


class Embedding(nn.Cell):
    """Rows of `weight` [V, H] by id, in the type of the activations."""

    def __init__(self, num_embeddings: int, dim: int, dtype: ms.Type, activations: ms.Type) -> None:
        super().__init__()
        self.weight = _matrix((num_embeddings, dim), dtype)
        self.activations = activations
        self.gather = ops.Gather()

    def construct(self, ids: Tensor) -> Tensor:
        return self.gather(self.weight, ids, 0).astype(self.activations)  # [...] -> [..., H]


class LayerNorm(nn.Cell):
    """Layer normalisation (Ba et al. 2016) over the last axis, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = _vector(dim, "ones")
        self.bias = _vector(dim, "zeros")
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(x.astype(ms.float32), self.weight, self.bias)[0].astype(x.dtype)


class RMSNorm(nn.Cell):
    """Root mean square normalisation (Zhang and Sennrich 2019) over the last axis, computed in float32.

    `operator` is a device's `rms_norm`, which wants input and weight in one type.
    """

    def __init__(self, dim: int, eps: float, operator: Operator | None = None) -> None:
        super().__init__()
        self.is_fused = operator is not None
        self.operator: Any = operator
        self.weight = _vector(dim, "ones")
        self.eps = eps
        self.dim = dim
        self.outer = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        if self.is_fused:
            return self.operator(x.astype(ms.float32), self.weight, epsilon=self.eps)[0].astype(x.dtype)
        rows = x.astype(ms.float32).reshape(-1, self.dim)
        scale = ops.rsqrt(ops.square(rows).mean(-1, keep_dims=True) + self.eps)  # [R, 1]
        # A product of column and row in place of two broadcasts: twice as fast, backward too, on a CPU.
        factors = self.outer(scale, self.weight.reshape(1, self.dim))  # [R, H]
        return (rows * factors).reshape(x.shape).astype(x.dtype)


class GELU(nn.Cell):
    """The exact (erf) GELU, in float32; MindSpore's nn.GELU falls back to the tanh approximation on some CPUs."""

    def construct(self, x: Tensor) -> Tensor:
        wide = x.astype(ms.float32)  # 1 + erf(x) of a negative x cancels in half precision
        return (wide * 0.5 * (1.0 + ops.erf(wide * (1.0 / math.sqrt(2.0))))).astype(x.dtype)


class QuickGELU(nn.Cell):
    """x * sigmoid(1.702 x), the activation OpenAI's CLIP was trained with; in float32."""

    def construct(self, x: Tensor) -> Tensor:
        wide = x.astype(ms.float32)
        return (wide * ops.sigmoid(1.702 * wide)).astype(x.dtype)


ACTIVATIONS: dict[str, type[nn.Cell]] = {"gelu": GELU, "quick_gelu": QuickGELU}


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) with grouped key/value heads.

    Args:
        query: [B, Hq, T, D].
        key, value: [B, Hkv, S, D]; Hkv divides Hq, and query head h reads key/value head h // (Hq / Hkv).
        mask: float32, added to the scores, [B, 1, T, S] or [1, 1, T, S]; 0 keeps a key, `MASKED` hides it.

    Returns:
        [B, T, Hq * D].
    """
    batch, heads, length, size = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    # The group's heads become rows of one product, so that no key or value is copied for them.
    rows = query.reshape(batch, kv_heads, groups * length, size)
    products = ops.BatchMatMul(transpose_b=True)(rows, key)  # [B, Hkv, G*T, S]
    # MindSpore widens bfloat16 nowhere by itself, so what is added must have one type.
    scores = products.astype(ms.float32) * (1.0 / math.sqrt(size))
    scores = scores.reshape(batch, heads, length, key.shape[2])
    if mask is not None:
        scores = scores + mask
    weights = ops.softmax(scores, -1).astype(value.dtype)
    mixed = ops.BatchMatMul()(weights.reshape(batch, kv_heads, groups * length, key.shape[2]), value)
    return mixed.reshape(batch, heads, length, size).transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
