"""Inputs of a model: arrays that callers pass, and the table that embeddings and image features form."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from .configuration import NO_VISION, Share4VConfig
from .generation.mixin import Array


def check_pixels(config: Share4VConfig, pixel_values: Array | None) -> np.ndarray:
    """Return pixel_values as float32 [N, 3, S, S]; None is no image.

    Raises:
        ValueError: the shape is another, a value is not finite, or the model has no vision tower.
    """
    if pixel_values is not None and len(pixel_values) and not config.has_vision:
        raise ValueError(NO_VISION)
    vision = config.vision_config
    shape = (vision.num_channels, vision.image_size, vision.image_size)
    if pixel_values is None:
        return np.zeros((0, *shape), np.float32)
    pixels = as_numpy(pixel_values).astype(np.float32)
    if pixels.ndim != 4 or pixels.shape[1:] != shape:
        raise ValueError(f"pixel_values must be [N, {', '.join(map(str, shape))}], got {list(pixels.shape)}")
    broken = [number for number, image in enumerate(pixels) if not np.isfinite(image).all()]
    if broken:
        raise ValueError(f"pixel_values of image {broken[0]} are not all finite numbers")
    return pixels


def as_numpy(values: Array) -> np.ndarray:
    """Return a MindSpore tensor, a NumPy array or nested lists as a NumPy array; bfloat16 as float32."""
    if isinstance(values, Tensor):
        return (values.float() if values.dtype == ms.bfloat16 else values).asnumpy()
    return np.asarray(values)


def embedding_table(token_embeds: Tensor, image_features: Tensor | None) -> Tensor:
    """Token embeddings [B, L, H] and features [N, P, H] as rows of one table, where merging.MergePlan.index points."""
    rows = token_embeds.reshape(-1, token_embeds.shape[-1])
    if image_features is None:
        return rows
    return ops.concat((rows, image_features.reshape(-1, rows.shape[-1])), 0)
