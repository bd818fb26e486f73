"""First weights for a model that is trained from nothing."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor

from ..modeling import Share4V

# Matrices that write into the residual stream; each is scaled down so that depth does not raise the stream's variance
# (Radford et al. 2019, section 2.3).
RESIDUAL = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")
EMBEDDINGS = ("embed_tokens.weight", "class_embedding")
POSITIONS = "position_embedding.weight"


def initialize(model: Share4V, seed: int, embedding_std: float = 0.02, position_std: float = 0.5) -> None:
    """Draw every matrix of `model` with standard deviation 1 / sqrt(inputs); vectors keep their ones and zeros.

    Args:
        embedding_std: of token embeddings and the class token.
        position_std: of the vision tower's positions; large ones let attention tell places apart from the first step.
    """
    random = np.random.default_rng(seed)
    depths = {
        "vision_tower.": model.config.vision_config.num_hidden_layers,
        "language_model.": model.config.text_config.num_hidden_layers,
    }
    for name, parameter in model.parameters_and_names():
        if parameter.ndim < 2 and not name.endswith(EMBEDDINGS):
            continue
        if name.endswith(POSITIONS):
            std = position_std
        elif name.endswith(EMBEDDINGS):
            std = embedding_std
        else:
            std = 1 / math.sqrt(math.prod(parameter.shape[1:]))
        if name.endswith(RESIDUAL):
            std /= math.sqrt(2 * next(depth for part, depth in depths.items() if name.startswith(part)))
        parameter.set_data(Tensor(random.normal(0, std, parameter.shape).astype(np.float32), parameter.dtype))
    model.reset_caches()
