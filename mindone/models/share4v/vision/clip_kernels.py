"""CLIP's vision transformer on the CPU kernels: one operator a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from ..configuration import Share4VConfig
from ..kernels.cache_memory import CacheMemory
from ..kernels.component import IMAGE_BATCH_SIZES, KernelComponent
from ..kernels.operators import layer_operator, linear_operator
from ..nn.host_ops import concat_rows
from .weights import vision_plans, vision_shapes


class KernelCLIPGraph(nn.Cell):
    """B images from patches to the wanted hidden state, the first `skipped` rows of each left out."""

    def __init__(self, hidden: int, eps: float, skipped: int) -> None:
        super().__init__(auto_prefix=False)
        self.hidden, self.skipped = hidden, skipped
        self.patches = linear_operator(hidden)
        self.layer = layer_operator()
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, tiles, index, first, positions, scale, shift, rows, nothing, cache, patches, *layers):  # type: ignore
        """tiles [B * N, C * P * P] -> [B, N or 1 + N, D]; `nothing` stands in for the rotary tables."""
        tokens = positions.shape[0]
        x = self.patches(tiles, index, patches).reshape(-1, tokens - 1, self.hidden)  # [B, N, D]
        first = ops.broadcast_to(first.reshape(1, 1, self.hidden), (x.shape[0], 1, self.hidden))
        x = ops.concat((first, x), 1) + positions  # [B, 1 + N, D]
        x = self.norm(x, scale, shift)[0].reshape(-1, self.hidden)
        for block in layers:
            x = self.layer(x, block, cache, rows, nothing, nothing)
        return x.reshape(-1, tokens, self.hidden)[:, self.skipped :]


class KernelCLIPVisionTower(KernelComponent):
    """The features ShareGPT4V sees of an image, computed by the kernels; as `clip.CLIPVisionTower`, for inference.

    Args:
        config: the whole model's config; `vision_config`, `select_layer` and `select_feature` are read.
        dtype: "float32", "float16", "int8" or "int4".
    """

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        self.config = config
        plans = vision_plans(config, dtype)
        packed = {piece.weight for plan in plans for piece in plan.pieces}
        plain = {name: shape for name, shape in vision_shapes(config.vision_config).items() if name not in packed}
        super().__init__(plans, plain)
        vision = config.vision_config
        tokens, heads = vision.num_patches + 1, vision.num_attention_heads
        # Keys and values of the layer being computed; every token sees every other of its image.
        most = IMAGE_BATCH_SIZES[0]
        self._cache = CacheMemory(1, most, heads, vision.hidden_size // heads, tokens, "float32")
        self._rows = np.zeros((most, tokens, 4), np.int32)
        self._rows[..., 0] = np.arange(most)[:, None]
        self._rows[..., 1], self._rows[..., 3] = np.arange(tokens), tokens
        self._nothing = Tensor(np.zeros((1, 1), np.float32))
        self._memory = Tensor.from_numpy(self._cache.memory)
        skipped = 0 if config.select_feature == "cls_patch" else 1
        self._graph = KernelCLIPGraph(vision.hidden_size, vision.layer_norm_eps, skipped)

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] float32 -> features [B, N, D]; a graph for every size of batch."""
        pixels, most = pixel_values.asnumpy(), IMAGE_BATCH_SIZES[0]
        return concat_rows([self._encode(pixels[first : first + most]) for first in range(0, len(pixels), most)])

    def _encode(self, images: np.ndarray) -> Any:
        vision = self.config.vision_config
        grid, patch = vision.image_size // vision.patch_size, vision.patch_size
        used = images[:, :, : grid * patch, : grid * patch]
        tiles = used.reshape(-1, vision.num_channels, grid, patch, grid, patch).transpose(0, 2, 4, 1, 3, 5)
        flat = np.ascontiguousarray(tiles, np.float32).reshape(len(images) * grid * grid, -1)  # [B * N, C * P * P]
        name = "vision_tower.vision_model."
        first, positions, scale, shift = self.tensors(
            f"{name}embeddings.class_embedding",
            f"{name}embeddings.position_embedding.weight",
            f"{name}pre_layrnorm.weight",
            f"{name}pre_layrnorm.bias",
        )
        patches, *layers = self.tensors(*self.names[: 1 + self.config.hidden_state_index])
        index = Tensor(np.arange(len(flat), dtype=np.int32))
        rows = Tensor(self._rows[: len(images)].reshape(-1, 4))
        plain = Tensor(flat), index, first, positions, scale, shift
        return self._graph.compile_and_run(*plain, rows, self._nothing, self._memory, patches, *layers)
