"""A projector such as another package could register; its parameter names appear in no published checkpoint."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn

from mindone.models.share4v import Share4VConfig
from mindone.models.share4v.nn.layers import Linear, weight_dtype


class GatedProjector(nn.Cell):
    """up(x) * sigmoid(gate(x))."""

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        super().__init__()
        sizes = config.vision_config.hidden_size, config.text_config.hidden_size
        self.up = Linear(*sizes, bias=True, dtype=weight_dtype(dtype))
        self.gate = Linear(*sizes, bias=True, dtype=weight_dtype(dtype))

    def construct(self, features: Tensor) -> Tensor:
        return self.up(features) * ms.ops.sigmoid(self.gate(features))
