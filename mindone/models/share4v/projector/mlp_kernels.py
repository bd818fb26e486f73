"""The projector on the CPU kernels: one operator per linear layer, which includes the GELU after it."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from ..configuration import Share4VConfig
from ..kernels.component import KernelComponent
from ..kernels.operators import linear_operator
from ..nn.graph import Graph
from .weights import projector_plans


class KernelProjectorGraph(Graph):
    """The linear layers in sequence."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = linear_operator(outputs)

    def construct(self, x, index, *layers):  # type: ignore[no-untyped-def]
        """x [B, N, D] -> [B, N, H]."""
        batch, count, size = x.shape
        x = x.reshape(-1, size)
        for block in layers:
            x = self.linear(x, index, block)
        return x.reshape(batch, count, -1)


class KernelProjector(KernelComponent):
    """A `linear`, `mlp{N}x_gelu` or `identity` projector on the CPU kernels, for inference only.

    Args:
        config: configuration of the full model; the sizes are the hidden sizes of `vision_config` and `text_config`.
        dtype: "float32", "float16", "int8" or "int4".

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
        self._graph = KernelProjectorGraph(config.text_config.hidden_size)

    def __call__(self, features: Tensor) -> Tensor:
        """features [B, N, D] -> embeddings [B, N, H]."""
        if not self.names:  # identity
            return features
        index = Tensor(np.arange(features.shape[0] * features.shape[1], dtype=np.int32))
        embeddings: Tensor = self._graph.compile_and_run(features, index, *self.tensors(*self.names))
        return embeddings
