"""The basic layers, with Hugging Face's parameter names.

MindSpore's own `nn.Dense`, `nn.LayerNorm` and `nn.Embedding` are not used: on a CPU the first transposes its weight on
every call, and the others name their parameters gamma, beta and embedding_table.

Functions and methods such as `ops.softmax`, `x.mean` and `x[..., :n]` are Python code that MindSpore parses anew for
every graph. Where that takes about a tenth of a second, the cells use primitives: `ops.Softmax`, `ops.ReduceMean` and
`ops.Split`.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from .device_operators import DeviceOperators, Operator, device_operators

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}
HALF = (ms.float16, ms.bfloat16)
# Far below any attention score, but finite: a query with every key masked then gives an average instead of NaN.
MASKED = -1e9


def weight_dtype(name: str, operators: DeviceOperators | None = None) -> ms.Type:
    """Return MindSpore's dtype for the name of a weight dtype.

    Args:
        name: one of `DTYPES`.
        operators: the device's operators; by default those of MindSpore's current device.

    Raises:
        ValueError: the name is not one of `DTYPES`, or the device does not support it.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not supported: expected one of {', '.join(DTYPES)}")
    supported = (operators or device_operators()).dtypes
    if name not in supported:
        raise ValueError(
            f"dtype {name!r} is not supported by MindSpore's operators on a CPU, only on Ascend: use "
            f"{' or '.join(repr(other) for other in supported)} (a checkpoint of any dtype can be loaded as these), or "
            "the CPU kernels, which Share4V.from_pretrained chooses by itself"
        )
    return DTYPES[name]


def activation_dtype(name: str, operators: DeviceOperators | None = None) -> ms.Type:
    """Return the dtype of the activations for weights of dtype `name`.

    A CPU always computes in float32 (its float16 products are 5 to 8 times slower, and less exact); Ascend computes in
    the weights' dtype.
    """
    operators = operators or device_operators()
    weights = weight_dtype(name, operators)
    return weights if operators.computes_in_weight_dtype else ms.float32


def _matrix(shape: tuple[int, ...], dtype: ms.Type) -> Parameter:
    return Parameter(initializer(Normal(0.02), shape, dtype))


def _vector(size: int, value: str) -> Parameter:
    # Vectors are a thousandth of the weights; they are float32 for every dtype of the matrices.
    return Parameter(initializer(value, (size,), ms.float32))


def widened(weight: Tensor, x: Tensor) -> Tensor:
    """Return `weight` in the dtype of `x`.

    MindSpore would schedule the casts of all parameters at the start of a graph, since they depend on nothing, and hold
    all widened copies at once. A dependency on `x` lets the memory of each cast be freed before the next one.
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


class Rows(nn.Cell):
    """The rows of a matrix with the given indices; `operator` is the device's `index_select`."""

    def __init__(self, operator: Operator | None = None) -> None:
        super().__init__()
        self.operator: Any = operator
        self.gather = ops.Gather()

    def construct(self, matrix: Tensor, indices: Tensor) -> Tensor:
        """matrix [N, H], indices int32 [...] -> [..., H]."""
        if self.operator is None:
            return self.gather(matrix, indices, 0)
        return self.operator(matrix, 0, indices.reshape(-1)).reshape((*indices.shape, matrix.shape[1]))


class Embedding(nn.Cell):
    """The rows of `weight` [V, H] with the given ids, in the dtype of the activations."""

    def __init__(
        self, num_embeddings: int, dim: int, dtype: ms.Type, activations: ms.Type, operator: Operator | None = None
    ) -> None:
        super().__init__()
        self.weight = _matrix((num_embeddings, dim), dtype)
        self.activations = activations
        self.rows = Rows(operator)

    def construct(self, ids: Tensor) -> Tensor:
        return self.rows(self.weight, ids).astype(self.activations)  # [...] -> [..., H]


class LayerNorm(nn.Cell):
    """Layer normalization (Ba et al. 2016) over the last axis, computed in float32.

    `operator` is the device's `layer_norm`; as it does not say that it accepts several dtypes, it gets float32 only.
    """

    def __init__(self, dim: int, eps: float, operator: Operator | None = None) -> None:
        super().__init__()
        self.is_fused = operator is not None
        self.operator: Any = operator
        self.dim = dim
        self.eps = eps
        self.weight = _vector(dim, "ones")
        self.bias = _vector(dim, "zeros")
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x: Tensor) -> Tensor:
        wide = x.astype(ms.float32)
        if self.is_fused:
            return self.operator(wide, (self.dim,), self.weight, self.bias, self.eps).astype(x.dtype)
        return self.norm(wide, self.weight, self.bias)[0].astype(x.dtype)


class RMSNorm(nn.Cell):
    """Root mean square normalization (Zhang and Sennrich 2019) over the last axis, computed in float32.

    `operator` is the device's fused `rms_norm`, which requires input and weight in the same dtype.
    """

    def __init__(self, dim: int, eps: float, operator: Operator | None = None) -> None:
        super().__init__()
        self.is_fused = operator is not None
        self.operator: Any = operator
        self.weight = _vector(dim, "ones")
        self.eps = eps
        self.dim = dim
        self.mean = ops.ReduceMean(keep_dims=True)
        self.outer = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        if self.is_fused:
            return self.operator(x.astype(ms.float32), self.weight, epsilon=self.eps)[0].astype(x.dtype)
        rows = x.astype(ms.float32).reshape(-1, self.dim)
        scale = ops.rsqrt(self.mean(ops.square(rows), (1,)) + self.eps)  # [R, 1]
        # An outer product instead of two broadcasts: on a CPU twice as fast, forward and backward.
        factors = self.outer(scale, self.weight.reshape(1, self.dim))  # [R, H]
        return (rows * factors).reshape(x.shape).astype(x.dtype)


class GELU(nn.Cell):
    """The exact (erf) GELU, in float32; MindSpore's nn.GELU falls back to the tanh approximation on some CPUs."""

    def construct(self, x: Tensor) -> Tensor:
        wide = x.astype(ms.float32)  # for negative x, 1 + erf(x) cancels in half precision
        return (wide * 0.5 * (1.0 + ops.erf(wide * (1.0 / math.sqrt(2.0))))).astype(x.dtype)


class QuickGELU(nn.Cell):
    """x * sigmoid(1.702 x), in float32: the activation with which OpenAI's CLIP was trained."""

    def construct(self, x: Tensor) -> Tensor:
        wide = x.astype(ms.float32)
        return (wide * ops.sigmoid(1.702 * wide)).astype(x.dtype)


ACTIVATIONS: dict[str, type[nn.Cell]] = {"gelu": GELU, "quick_gelu": QuickGELU}


def split_heads(x: Tensor, heads: int, size: int) -> Tensor:
    """[B, T, heads * size] -> [B, heads, T, size]."""
    batch, length, _ = x.shape  # with -1 in place of `size`, a wrong number of heads would go unnoticed
    return ops.transpose(x.reshape(batch, length, heads, size), (0, 2, 1, 3))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) with grouped key/value heads.

    Args:
        query: [B, Hq, T, D].
        key, value: [B, Hkv, S, D]; Hkv divides Hq, and query head h reads key/value head h // (Hq / Hkv).
        mask: float32 [B, 1, T, S] or [1, 1, T, S], added to the scores; 0 for visible keys, `MASKED` for hidden ones.

    Returns:
        [B, T, Hq * D].
    """
    batch, heads, length, size = query.shape
    _, kv_heads, slots, _ = key.shape
    # The query heads of a group become rows of one product, so that keys and values need not be repeated.
    rows = query.reshape(batch, kv_heads, -1, size)  # [B, Hkv, G * T, D]
    products = ops.BatchMatMul(transpose_b=True)(rows, key)  # [B, Hkv, G * T, S]
    # MindSpore does not promote bfloat16, so scores and mask must have the same dtype.
    scores = products.astype(ms.float32) * (1.0 / math.sqrt(size))
    scores = scores.reshape(batch, heads, length, slots)
    if mask is not None:
        scores = scores + mask
    weights = ops.Softmax(-1)(scores).astype(value.dtype)
    attended = ops.BatchMatMul()(weights.reshape(batch, kv_heads, -1, slots), value)  # [B, Hkv, G * T, D]
    attended = ops.transpose(attended.reshape(batch, heads, length, size), (0, 2, 1, 3))  # [B, T, Hq, D]
    return attended.reshape(batch, length, heads * size)
