"""Random initial weights of a model that is trained from scratch."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor

from ..modeling import Share4V

# Matrices that add to the residual stream. They are scaled down with depth, so that the variance of the stream does not
# grow with it (Radford et al. 2019, section 2.3).
RESIDUAL = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")
EMBEDDINGS = ("embed_tokens.weight", "class_embedding")
POSITIONS = "position_embedding.weight"


def initialize(model: Share4V, seed: int, embedding_std: float = 0.02, position_std: float = 0.5) -> None:
    """Initialize every matrix of `model` with normal values of standard deviation 1 / sqrt(inputs).

    Norms and biases keep their ones and zeros.

    Args:
        seed: seed of the random generator.
        embedding_std: standard deviation of token embeddings and of the class token.
        position_std: standard deviation of the vision tower's position embeddings; with large values attention can
            distinguish positions from the first step.
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
