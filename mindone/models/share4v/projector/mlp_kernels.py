"""The projector on the CPU kernels: one call per linear layer, which includes the GELU after it."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from ..configuration import Share4VConfig
from ..kernels.component import KernelComponent
from ..kernels.operators import linear
from .weights import projector_plans


class KernelProjector(KernelComponent):
    """A `linear`, `mlp{N}x_gelu` or `identity` projector on the CPU kernels, for inference only.

    Args:
        config: configuration of the full model; the sizes are the hidden sizes of `vision_config` and `text_config`.
        dtype: "float32", "float16", "bfloat16", "int8" or "int4".

    Raises:
        ValueError: the projector type was registered by another package, which alone knows its weights.
    """

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        plans = projector_plans(config, dtype)
        if plans is None:
            raise ValueError(
                f"projector_type {config.projector_config.projector_type!r} does not run on the CPU kernels: "
                "expected linear, mlp{N}x_gelu or identity"
            )
        super().__init__(plans, {})
        self._outputs = config.text_config.hidden_size

    def __call__(self, features: Tensor) -> Tensor:
        """features [B, N, D] -> embeddings [B, N, H]."""
        if not self.names:  # identity
            return features
        x = features.asnumpy()
        batch, count, size = x.shape
        x = np.ascontiguousarray(x, np.float32).reshape(-1, size)  # [B * N, D]
        index = np.arange(len(x), dtype=np.int32)
        for block in self.arrays(*self.names):
            x = linear(x, index, block, self._outputs)
        return Tensor(x.reshape(batch, count, -1))
