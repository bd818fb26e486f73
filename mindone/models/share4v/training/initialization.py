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
# Dtypes of weights that cannot be trained, and why. nn.Adam keeps its moments in the dtype of the weights.
UNTRAINABLE = {
    "float16": "Adam's epsilon of 1e-8 and most updates are too small for float16",
    "bfloat16": "most updates are lost in bfloat16's 8 bits, and MindSpore's Adam does not accept bfloat16 gradients",
    "int8": "they are integers",
    "int4": "they are integers",
}


def check_trainable(dtype: str) -> None:
    """Raise an error unless weights of this dtype can be trained; only float32 can, on every device.

    The model may compute in half precision all the same: see `trainer.Stage.precision`.

    Raises:
        ValueError: the dtype is not "float32".

    Example:
        >>> from mindone.models.share4v.training.initialization import check_trainable
        >>> check_trainable("float32")
        >>> check_trainable("bfloat16")
        Traceback (most recent call last):
        ValueError: weights of dtype 'bfloat16' cannot be trained: most updates are lost in bfloat16's ...
    """
    if dtype != "float32":
        half = dtype if dtype == "float16" else "bfloat16"
        reason = UNTRAINABLE.get(dtype, "only float32 weights can be trained")
        raise ValueError(
            f"weights of dtype {dtype!r} cannot be trained: {reason}; create or load the model with dtype='float32' "
            "(a checkpoint of any dtype can be loaded so). For products in half precision give the stage "
            f"precision={half!r}; convert the result with share4v convert"
        )


def initialize(model: Share4V, seed: int, embedding_std: float = 0.02, position_std: float = 0.5) -> None:
    """Initialize every matrix of `model` with normal values of standard deviation 1 / sqrt(inputs).

    Norms and biases keep their ones and zeros.

    Args:
        seed: seed of the random generator.
        embedding_std: standard deviation of token embeddings and of the class token.
        position_std: standard deviation of the vision tower's position embeddings; with large values attention can
            distinguish positions from the first step.

    Raises:
        ValueError: the model's dtype is not float32, the only one that can be trained.
    """
    check_trainable(model.dtype)
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
