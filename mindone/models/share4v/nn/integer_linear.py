"""Linear layers with integer weights, on a device's product with integer weights."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import initializer

from .device_operators import DeviceOperators
from .integer_weights import Narrow, Rounded, restored, round_int4, round_int8


class IntegerLinear(nn.Cell):
    """y = x W^T + b over the last axis, with W as int8 or int4 and x as float16 or bfloat16; for inference only.

    Every other weight of a model is a Parameter with the shape that checkpoints have. This one has `shape`, [O, I], and
    is rounded by `put` as it is read.

    Args:
        in_features, out_features: I and O.
        bias: whether there is one; float32, as in `Linear`.
        integers: "int8" or "int4".
        activations: float16 or bfloat16.
        operators: the device's, with `weight_quant_batch_matmul`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        integers: str,
        activations: ms.Type,
        operators: DeviceOperators,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.shape = out_features, in_features
        self.is_int4 = integers == "int4"
        self.group = group = operators.integer_limits.group
        self.activations = activations
        self.bias = Parameter(initializer("zeros", (out_features,), ms.float32)) if bias else None
        scales: tuple[int, ...] = (out_features,)
        if self.is_int4:
            scales = in_features // group, out_features
            self.weight = _parameter((in_features, out_features // 2), operators.int4_pair)
            self.offset = _parameter(scales, activations)
        else:
            self.weight = _parameter(self.shape, ms.int8)
            self.offset = None
        self.scale = _parameter(scales, activations)
        # transpose_x, transpose_weight, antiquant_group_size; 0: a scale is for a whole output
        make: Any = operators.weight_quant_batch_matmul
        self.product: Any = make(False, not self.is_int4, group if self.is_int4 else 0)

    def put(self, weight: np.ndarray, narrow: Narrow, importance: np.ndarray | None = None) -> None:
        """Round and store a float weight [O, I].

        Args:
            weight: the weight.
            narrow: rounds an array to the type of the activations.
            importance: [I], as in `round_int4`; int8 does not use it.
        """
        rounded = round_int4(weight, self.group, narrow, importance) if self.is_int4 else round_int8(weight, narrow)
        self.weight.set_data(Tensor(rounded.weight, self.weight.dtype))
        self.scale.set_data(Tensor(rounded.scale, self.activations))
        if self.offset is not None:
            self.offset.set_data(Tensor(rounded.offset, self.activations))

    def restored(self) -> np.ndarray:
        """Return the float32 matrix [O, I] that the integers and scales mean."""
        offset = None if self.offset is None else self.offset.float().asnumpy()
        # The bytes of two int4 are int8 to NumPy.
        integers = self.weight.asnumpy().view(np.int8)
        return restored(Rounded(integers, self.scale.float().asnumpy(), offset))

    def construct(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)  # [..., I] -> [R, I]
        y = self.product(rows, self.weight, self.scale, self.offset, None, None, None)  # [R, O]
        # MindSpore asks for the bias in the type of x, CANN for float32 where x is bfloat16: so it is added here.
        if self.bias is not None:
            y = y + self.bias.astype(x.dtype)
        return y.reshape((*x.shape[:-1], self.out_features))


def _parameter(shape: tuple[int, ...], dtype: ms.Type) -> Parameter:
    return Parameter(initializer("zeros", shape, dtype), requires_grad=False)
