"""Projectors from image features to the language model's embeddings (LLaVA-1.5, Liu et al. 2023, section 3.2).

Shapes: B images, N patches, feature size D, embedding size H.
"""

from __future__ import annotations

import re
from typing import Any

from mindspore import Tensor, nn

from ..configuration import Share4VConfig
from ..nn.layers import GELU, Linear, weight_dtype
from ..registry import PROJECTORS

MLP_TYPE = re.compile(r"mlp(\d+)x_gelu")


class LinearProjector(Linear):
    """One linear layer: [B, N, D] -> [B, N, H]."""

    computes_in_input_dtype = True

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        sizes = config.vision_config.hidden_size, config.text_config.hidden_size
        super().__init__(*sizes, bias=config.projector_config.bias, dtype=weight_dtype(dtype))


class MLPProjector(nn.SequentialCell):
    """Linear layers with the exact GELU in between: [B, N, D] -> [B, N, H].

    The linear layers are numbered 0, 2, 4, ... as in the checkpoints.
    """

    computes_in_input_dtype = True

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        match = MLP_TYPE.fullmatch(config.projector_config.projector_type)
        if match is None or int(match[1]) < 1:
            raise ValueError(
                f"projector_type {config.projector_config.projector_type!r}: expected 'mlp{{N}}x_gelu' with N >= 1"
            )
        bias, weights = config.projector_config.bias, weight_dtype(dtype)
        hidden = config.text_config.hidden_size
        cells: list[nn.Cell] = [Linear(config.vision_config.hidden_size, hidden, bias, weights)]
        for _ in range(1, int(match[1])):
            cells += [GELU(), Linear(hidden, hidden, bias, weights)]
        super().__init__(cells)


class IdentityProjector(nn.Cell):
    """Returns the features unchanged; their size must be that of the embeddings."""

    computes_in_input_dtype = True

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        super().__init__()

    def construct(self, features: Tensor) -> Tensor:
        return features


def build_projector(config: Share4VConfig, dtype: str = "float32") -> Any:
    """Build the projector that `config.projector_config.projector_type` names.

    Args:
        config: configuration of the full model; the sizes are the hidden sizes of `vision_config` and `text_config`.
        dtype: dtype of the weight matrices, "float32", "float16", or "bfloat16" on Ascend.

    Returns:
        A cell: [B, N, D] -> [B, N, H].

    Raises:
        ValueError: the type is not `linear`, `mlp{N}x_gelu`, `identity` or one that a plug-in registered.

    Example:
        >>> from mindone.models.share4v import ProjectorConfig, Share4VConfig, build_projector
        >>> type(build_projector(Share4VConfig(projector_config=ProjectorConfig("linear")))).__name__
        'LinearProjector'
    """
    kind = config.projector_config.projector_type
    return PROJECTORS.resolve("mlp" if MLP_TYPE.fullmatch(kind) else kind)(config, dtype)
