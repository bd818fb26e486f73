"""CLIP's vision transformer on the CPU kernels: one call per layer. Shapes are named as in clip.py."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from ..configuration import Share4VConfig
from ..kernels.cache_memory import CacheMemory
from ..kernels.component import IMAGE_BATCH_SIZES, KernelComponent
from ..kernels.library import library
from ..kernels.operators import layer, linear
from ..kernels.packing import NORMS
from .weights import VISION_MODEL, vision_plans, vision_shapes


class KernelCLIPVisionTower(KernelComponent):
    """`clip.CLIPVisionTower` on the CPU kernels: inference only, also with int8 and int4 weights.

    Args:
        config: configuration of the full model; uses `vision_config`, `select_layer` and `select_feature`.
        dtype: "float32", "float16", "bfloat16", "int8" or "int4".
    """

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        self.config = config
        plans = vision_plans(config, dtype)
        packed = {piece.weight for plan in plans for piece in plan.pieces}
        plain = {name: shape for name, shape in vision_shapes(config.vision_config).items() if name not in packed}
        super().__init__(plans, plain)
        vision = config.vision_config
        tokens, heads = vision.num_patches + 1, vision.num_attention_heads
        max_batch = max(IMAGE_BATCH_SIZES)
        # One layer's keys and values, which the next layer overwrites.
        self._cache = CacheMemory(1, max_batch, heads, vision.hidden_size // heads, tokens, "float32")
        # (image, slot, 0, T): every token attends to all tokens of its image.
        self._rows = np.zeros((max_batch, tokens, 4), np.int32)
        self._rows[..., 0] = np.arange(max_batch)[:, None]
        self._rows[..., 1] = np.arange(tokens)
        self._rows[..., 3] = tokens
        self._no_table = np.zeros((1, 1), np.float32)  # the layers have no rotary embedding
        self._skipped = 0 if config.select_feature == "cls_patch" else 1

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] float32 -> features [B, N, D]."""
        pixels, max_batch = pixel_values.asnumpy(), max(IMAGE_BATCH_SIZES)
        batches = [pixels[first : first + max_batch] for first in range(0, len(pixels), max_batch)]
        return Tensor(np.concatenate([self._encode(batch) for batch in batches]))

    def _encode(self, images: np.ndarray) -> np.ndarray:
        """images [B, 3, S, S] -> features [B, N, D]."""
        vision = self.config.vision_config
        hidden, tokens = vision.hidden_size, vision.num_patches + 1
        tiles = self._tiles(images)  # [B * N, C * P * P]
        class_token, positions, weight, bias = self.arrays(
            f"{VISION_MODEL}embeddings.class_embedding",
            f"{VISION_MODEL}embeddings.position_embedding.weight",
            f"{VISION_MODEL}pre_layrnorm.weight",
            f"{VISION_MODEL}pre_layrnorm.bias",
        )
        patches, *layers = self.arrays(*self.names[: 1 + self.config.hidden_state_index])
        embedded = np.empty((len(images), tokens, hidden), np.float32)  # [B, T, D]
        embedded[:, 0] = class_token
        embedded[:, 1:] = linear(tiles, np.arange(len(tiles), dtype=np.int32), patches, hidden).reshape(
            len(images), tokens - 1, hidden
        )
        embedded += positions
        x = library().norm(NORMS["layer"], vision.layer_norm_eps, weight, bias, embedded.reshape(-1, hidden))
        rows = self._rows[: len(images)].reshape(-1, 4)
        for block in layers:
            x = layer(x, block, self._cache.memory, rows, self._no_table, self._no_table)
        return x.reshape(-1, tokens, hidden)[:, self._skipped :]

    def _tiles(self, images: np.ndarray) -> np.ndarray:
        """Cut images [B, C, S, S] into patches [B * N, C * P * P]."""
        vision = self.config.vision_config
        grid, patch = vision.image_size // vision.patch_size, vision.patch_size
        used = images[:, :, : grid * patch, : grid * patch]
        tiles = used.reshape(-1, vision.num_channels, grid, patch, grid, patch)  # [B, C, G, P, G, P]
        tiles = tiles.transpose(0, 2, 4, 1, 3, 5)  # [B, G, G, C, P, P]
        return np.ascontiguousarray(tiles, np.float32).reshape(len(images) * grid * grid, -1)
