"""The vision tower "mindone": mindone.transformers' CLIP with the weights of a ShareGPT4V checkpoint.

Importing this module imports mindone.transformers, which takes seconds; the registry does it on first use.
"""

from __future__ import annotations

from dataclasses import asdict

import mindspore as ms
from mindone.transformers import CLIPVisionModel
from mindspore import Tensor, nn
from transformers import CLIPVisionConfig

from ...configuration import Share4VConfig, VisionConfig
from ...nn.layers import activation_dtype, weight_dtype

# MindSpore's name of a weight -> its name in checkpoints.
LEAVES = {"gamma": "weight", "beta": "bias", "embedding_table": "weight"}
# Equivalent activations made of operators that all devices support: "gelu" is not supported on a CPU.
ACTIVATIONS = {"gelu": "gelu_python"}


class MindoneCLIPVisionTower(nn.Cell):
    """ShareGPT4V's image features, computed by mindone.transformers' CLIPVisionModel.

    mindone's cells compute in the data type of their weights, including float16 on a CPU, where it is slower than
    float32.

    Args:
        config: config of the whole model; `vision_config`, `select_layer` and `select_feature` are used.
        dtype: data type of the weights, "float32" or "float16".

    Raises:
        ValueError: the dtype is not supported.

    Example:
        >>> import numpy as np
        >>> from mindspore import Tensor
        >>> from mindone.models.share4v import Share4VConfig, VisionConfig
        >>> from mindone.models.share4v.integrations.mindone_transformers.vision_tower import MindoneCLIPVisionTower
        >>> vision = VisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...                       image_size=28, patch_size=14)
        >>> tower = MindoneCLIPVisionTower(Share4VConfig(vision_config=vision))
        >>> tower(Tensor(np.zeros((1, 3, 28, 28), np.float32))).shape
        (1, 4, 32)
    """

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        super().__init__()
        self.index = config.hidden_state_index
        self.first = 1 if config.select_feature == "patch" else 0
        self.activations = activation_dtype(dtype)
        self.vision_model = make_clip(config.vision_config).vision_model
        self.update_parameters_name()
        for parameter in self.get_parameters():
            parameter.set_dtype(weight_dtype(dtype))

    def update_parameters_name(self, prefix: str = "", recurse: bool = True) -> None:
        """Name the parameters as in checkpoints; MindSpore calls this when the tower becomes part of another cell."""
        super().update_parameters_name(prefix, recurse)
        for parameter in self.get_parameters():
            parent, _, leaf = parameter.name.rpartition(".")
            parameter.name = f"{parent}.{LEAVES.get(leaf, leaf)}"

    def construct(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] float32 -> features [B, N, D]."""
        states = self.vision_model(pixel_values, output_hidden_states=True)[2]
        return states[self.index][:, self.first :].astype(self.activations)


def make_clip(config: VisionConfig) -> CLIPVisionModel:
    """Return mindone's model for this config, with initial weights.

    Its patch embedding, `mint.nn.Conv2d`, is not supported on a CPU and is replaced there by an equivalent `nn.Conv2d`.
    """
    settings = asdict(config)
    settings["hidden_act"] = ACTIVATIONS.get(config.hidden_act, config.hidden_act)
    model = CLIPVisionModel(CLIPVisionConfig(**settings))
    if ms.get_context("device_target") == "CPU":
        patch, embeddings = config.patch_size, model.vision_model.embeddings
        embeddings.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, patch, patch, pad_mode="valid", has_bias=False
        )
    return model
