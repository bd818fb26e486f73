"""CLIP's vision transformer (Radford et al. 2021), evaluated up to the selected hidden state.

Shapes: B images of S x S pixels, N patches of P x P pixels, T = 1 + N tokens of size D.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from ..configuration import Share4VConfig, VisionConfig
from ..nn.device_operators import DeviceOperators
from ..nn.fused import Arithmetic
from ..nn.layers import ACTIVATIONS, HALF, Linear, split_heads, widened


class PatchEmbedding(nn.Cell):
    """CLIP's patch convolution, computed as a matrix product over unfolded patches; it has no bias.

    `weight` is [D, C, P, P] as in the checkpoints. Pixel rows and columns that do not fill a patch are ignored.
    """

    def __init__(self, config: VisionConfig, dtype: ms.Type) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.channels = config.num_channels
        self.grid = config.image_size // config.patch_size
        self.dim = config.hidden_size
        shape = (config.hidden_size, config.num_channels, config.patch_size, config.patch_size)
        self.weight = Parameter(initializer(Normal(0.02), shape, dtype))
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, pixel_values: Tensor) -> Tensor:
        grid, patch = self.grid, self.patch
        used = pixel_values
        if pixel_values.shape[2] != grid * patch:  # no slice of everything, which is an operator too
            used = pixel_values[:, :, : grid * patch, : grid * patch]
        tiles = used.reshape(-1, self.channels, grid, patch, grid, patch)  # [B, C, G, P, G, P]
        tiles = ops.transpose(tiles, (0, 2, 4, 1, 3, 5))  # [B, G, G, C, P, P]
        tiles = tiles.reshape(-1, self.channels * patch * patch)  # [B * N, C * P * P]
        kernel = widened(self.weight, tiles).reshape(self.dim, -1)
        return self.matmul(tiles, kernel).reshape(-1, grid * grid, self.dim)  # [B, N, D]


class CLIPVisionEmbeddings(nn.Cell):
    """Class token and patches, plus learned position embeddings."""

    def __init__(self, config: VisionConfig, dtype: ms.Type) -> None:
        super().__init__()
        self.dim = config.hidden_size
        self.class_embedding = Parameter(initializer(Normal(0.02), (config.hidden_size,), ms.float32))
        self.patch_embedding = PatchEmbedding(config, dtype)
        self.position_embedding = PositionEmbedding(config.num_patches + 1, config.hidden_size)

    def construct(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values)  # [B, N, D]
        class_token = self.class_embedding.astype(patches.dtype).reshape(1, 1, self.dim)
        class_token = ops.broadcast_to(class_token, (patches.shape[0], 1, self.dim))
        return self.position_embedding(ops.Concat(1)((class_token, patches)))  # [B, 1 + N, D]


class PositionEmbedding(nn.Cell):
    """Adds row n of `weight` [1 + N, D] to token n."""

    def __init__(self, positions: int, dim: int) -> None:
        super().__init__()
        self.weight = Parameter(initializer(Normal(0.02), (positions, dim), ms.float32))

    def construct(self, tokens: Tensor) -> Tensor:
        return tokens + self.weight.astype(tokens.dtype)


class CLIPAttention(nn.Cell):
    """Multi-head self-attention over all tokens, without a mask."""

    def __init__(self, config: VisionConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        dim, dtype = config.hidden_size, arithmetic.weights
        self.heads = config.num_attention_heads
        self.head_dim = dim // self.heads
        self.q_proj = Linear(dim, dim, dtype=dtype)
        self.k_proj = Linear(dim, dim, dtype=dtype)
        self.v_proj = Linear(dim, dim, dtype=dtype)
        self.out_proj = Linear(dim, dim, dtype=dtype)
        self.attend = arithmetic.attention(self.heads, self.heads, self.head_dim, config.num_patches + 1)

    def construct(self, x: Tensor) -> Tensor:
        query = split_heads(self.q_proj(x), self.heads, self.head_dim)  # [B, heads, T, D / heads]
        key = split_heads(self.k_proj(x), self.heads, self.head_dim)
        value = split_heads(self.v_proj(x), self.heads, self.head_dim)
        return self.out_proj(self.attend(query, key, value))


class CLIPMLP(nn.Cell):
    """Two linear layers with the configured GELU in between."""

    def __init__(self, config: VisionConfig, dtype: ms.Type) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, dtype=dtype)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, dtype=dtype)
        self.activation = ACTIVATIONS[config.hidden_act]()

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPEncoderLayer(nn.Cell):
    """Attention and MLP, each with a LayerNorm before it and a residual connection."""

    def __init__(self, config: VisionConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config, arithmetic)
        self.layer_norm1 = arithmetic.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.mlp = CLIPMLP(config, arithmetic.weights)
        self.layer_norm2 = arithmetic.layer_norm(config.hidden_size, config.layer_norm_eps)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Cell):
    """The layers, under the name that the checkpoints use."""

    def __init__(self, config: VisionConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.layers = nn.CellList([CLIPEncoderLayer(config, arithmetic) for _ in range(config.num_hidden_layers)])


class CLIPVisionTransformer(nn.Cell):
    """All layers of the tower, including those after the selected one, so that checkpoints load and save completely."""

    def __init__(self, config: VisionConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config, arithmetic.weights)
        self.pre_layrnorm = arithmetic.layer_norm(config.hidden_size, config.layer_norm_eps)  # sic, in the checkpoints
        self.encoder = CLIPEncoder(config, arithmetic)
        self.post_layernorm = arithmetic.layer_norm(config.hidden_size, config.layer_norm_eps)

    def hidden_state(self, pixel_values: Tensor, index: int) -> Tensor:
        """Return hidden state `index` [B, 1 + N, D]; number 0 is the normalized embeddings."""
        x = self.pre_layrnorm(self.embeddings(pixel_values))
        for number in range(index):  # not a slice: slicing a CellList creates a new one and renames the weights
            x = self.encoder.layers[number](x)
        return x


class CLIPVisionTower(nn.Cell):
    """ShareGPT4V's image features: one hidden state of CLIP, with or without the class token.

    Args:
        config: configuration of the full model; uses `vision_config`, `select_layer` and `select_feature`.
        dtype: dtype of the weight matrices, "float32", "float16", or "bfloat16" on Ascend.
        operators: the device's operators; by default those of MindSpore's current device.

    Raises:
        ValueError: the dtype is unknown, or the device does not support it.

    Example:
        >>> import numpy as np
        >>> from mindspore import Tensor
        >>> from mindone.models.share4v import ProjectorConfig, Share4VConfig, TextConfig, VisionConfig
        >>> from mindone.models.share4v.vision.clip import CLIPVisionTower
        >>> vision = VisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...                       image_size=28, patch_size=14)
        >>> tower = CLIPVisionTower(Share4VConfig(vision_config=vision))
        >>> tower(Tensor(np.zeros((1, 3, 28, 28), np.float32))).shape
        (1, 4, 32)
    """

    computes_in_input_dtype = True

    def __init__(self, config: Share4VConfig, dtype: str = "float32", operators: DeviceOperators | None = None) -> None:
        super().__init__()
        self.index = config.hidden_state_index
        self.first = 1 if config.select_feature == "patch" else 0
        arithmetic = Arithmetic.of(dtype, operators)
        self.activations = arithmetic.activations
        self.narrow: Any = arithmetic.operators.narrow
        self.vision_model = CLIPVisionTransformer(config.vision_config, arithmetic)

    def construct(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] -> features [B, N, D]; pixels in half precision are computed in their own dtype."""
        if pixel_values.dtype not in HALF:
            pixel_values = pixel_values.astype(self.activations)
        hidden = self.vision_model.hidden_state(pixel_values, self.index)
        if self.narrow is not None:
            return self.narrow(hidden, 1, self.first, hidden.shape[1] - self.first)
        batch, tokens, size = hidden.shape
        return ops.Slice()(hidden, (0, self.first, 0), (batch, tokens - self.first, size))
