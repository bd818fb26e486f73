"""CLIP's vision transformer on the CPU kernels: one operator per layer. Shapes are named as in clip.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, ops

from ..configuration import Share4VConfig
from ..kernels.cache_memory import CacheMemory
from ..kernels.component import IMAGE_BATCH_SIZES, KernelComponent
from ..kernels.operators import layer_operator, linear_operator
from ..nn.graph import Graph
from ..nn.host_ops import concat_rows
from .weights import VISION_MODEL, vision_plans, vision_shapes


class KernelCLIPGraph(Graph):
    """From patches to the selected hidden state, without the first `skipped` tokens of each image."""

    def __init__(self, hidden: int, eps: float, skipped: int) -> None:
        super().__init__()
        self.hidden, self.skipped = hidden, skipped
        self.patches = linear_operator(hidden)
        self.layer = layer_operator()
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(  # type: ignore[no-untyped-def]
        self, tiles, index, class_token, positions, norm_weight, norm_bias, rows, no_table, cache, patches, *layers
    ):
        """tiles [B * N, C * P * P] -> features [B, T - skipped, D]; `no_table` stands for the unused rotary tables."""
        tokens = positions.shape[0]
        x = self.patches(tiles, index, patches).reshape(-1, tokens - 1, self.hidden)  # [B, N, D]
        class_token = ops.broadcast_to(class_token.reshape(1, 1, self.hidden), (x.shape[0], 1, self.hidden))
        x = ops.concat((class_token, x), 1) + positions  # [B, T, D]
        x = self.norm(x, norm_weight, norm_bias)[0].reshape(-1, self.hidden)  # [B * T, D]
        for block in layers:
            x = self.layer(x, block, cache, rows, no_table, no_table)
        return x.reshape(-1, tokens, self.hidden)[:, self.skipped :]


class KernelCLIPVisionTower(KernelComponent):
    """`clip.CLIPVisionTower` on the CPU kernels: inference only, also with int8 and int4 weights.

    Args:
        config: configuration of the full model; uses `vision_config`, `select_layer` and `select_feature`.
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
        max_batch = max(IMAGE_BATCH_SIZES)
        # One layer's keys and values, which the next layer overwrites.
        self._cache = CacheMemory(1, max_batch, heads, vision.hidden_size // heads, tokens, "float32")
        # (image, slot, 0, T): every token attends to all tokens of its image.
        self._rows = np.zeros((max_batch, tokens, 4), np.int32)
        self._rows[..., 0] = np.arange(max_batch)[:, None]
        self._rows[..., 1] = np.arange(tokens)
        self._rows[..., 3] = tokens
        self._no_table = Tensor(np.zeros((1, 1), np.float32))
        self._memory = Tensor.from_numpy(self._cache.memory)
        skipped = 0 if config.select_feature == "cls_patch" else 1
        self._graph = KernelCLIPGraph(vision.hidden_size, vision.layer_norm_eps, skipped)

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] float32 -> features [B, N, D]; each batch size compiles a graph."""
        pixels, max_batch = pixel_values.asnumpy(), max(IMAGE_BATCH_SIZES)
        batches = [pixels[first : first + max_batch] for first in range(0, len(pixels), max_batch)]
        return concat_rows([self._encode(batch) for batch in batches])

    def _encode(self, images: np.ndarray) -> Any:
        vision = self.config.vision_config
        grid, patch = vision.image_size // vision.patch_size, vision.patch_size
        used = images[:, :, : grid * patch, : grid * patch]
        tiles = used.reshape(-1, vision.num_channels, grid, patch, grid, patch)  # [B, C, G, P, G, P]
        tiles = tiles.transpose(0, 2, 4, 1, 3, 5)  # [B, G, G, C, P, P]
        flat = np.ascontiguousarray(tiles, np.float32).reshape(len(images) * grid * grid, -1)  # [B * N, C * P * P]
        plain = self.tensors(
            f"{VISION_MODEL}embeddings.class_embedding",
            f"{VISION_MODEL}embeddings.position_embedding.weight",
            f"{VISION_MODEL}pre_layrnorm.weight",
            f"{VISION_MODEL}pre_layrnorm.bias",
        )
        patches, *layers = self.tensors(*self.names[: 1 + self.config.hidden_state_index])
        index = Tensor(np.arange(len(flat), dtype=np.int32))
        rows = Tensor(self._rows[: len(images)].reshape(-1, 4))
        return self._graph.compile_and_run(
            Tensor(flat), index, *plain, rows, self._no_table, self._memory, patches, *layers
        )
