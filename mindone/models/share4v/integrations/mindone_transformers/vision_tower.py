"""mindone's CLIP as a vision tower: the zoo's own cells with a ShareGPT4V checkpoint's weights.

This imports all of mindone.transformers, which takes seconds; the registry does so when "mindone" is asked for.
"""

from __future__ import annotations

from dataclasses import asdict

import mindspore as ms
from mindone.transformers import CLIPVisionModel
from mindspore import Tensor, nn
from transformers import CLIPVisionConfig

from ...configuration import Share4VConfig, VisionConfig
from ...nn.layers import activation_dtype, weight_dtype

# MindSpore's name of a weight -> the checkpoints'.
LEAVES = {"gamma": "weight", "beta": "bias", "embedding_table": "weight"}
# The same activation, of operators that every device has: "gelu" is one that a CPU has not.
ACTIVATIONS = {"gelu": "gelu_python"}


class MindoneCLIPVisionTower(nn.Cell):
    """The features ShareGPT4V sees of an image, computed by mindone.transformers' CLIPVisionModel.

    mindone's cells compute in their weights' type: in float16 on a CPU too, which is slower there than float32.

    Args:
        config: the whole model's config; `vision_config`, `select_layer` and `select_feature` are read.
        dtype: type of all weights, "float32" or "float16".

    Raises:
        ValueError: the dtype is another.

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
        """Name the parameters as the checkpoints do, whatever cell takes the tower in and calls this."""
        super().update_parameters_name(prefix, recurse)
        for parameter in self.get_parameters():
            parent, _, leaf = parameter.name.rpartition(".")
            parameter.name = f"{parent}.{LEAVES.get(leaf, leaf)}"

    def construct(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] float32 -> features [B, N, D]."""
        states = self.vision_model(pixel_values, output_hidden_states=True)[2]
        return states[self.index][:, self.first :].astype(self.activations)


def make_clip(config: VisionConfig) -> CLIPVisionModel:
    """Return mindone's model of these sizes, its weights not set.

    On a CPU `mint.nn.Conv2d`, its patch embedding, has no kernel: that one cell is replaced by an equal `nn.Conv2d`.
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
