"""Rotary position embedding (Su et al. 2021): the tables, made on the host, and their application."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ..configuration import TextConfig


def inverse_frequencies(config: TextConfig, total: int) -> np.ndarray:
    """Return the angle a position adds in each pair of dimensions, float32 [D / 2].

    Args:
        config: `rope_theta`, `head_dim` and `rope_scaling` are read. Linear scaling divides every angle (Chen et al.
            2023); dynamic NTK scaling raises the base once a text outgrows `max_position_embeddings`.
        total: how many tokens the text has, for dynamic scaling.
    """
    size, base, scaling = config.head_size, config.rope_theta, config.rope_scaling
    trained = config.max_position_embeddings
    if scaling is not None and scaling.rope_type == "dynamic" and total > trained:
        base = base * (scaling.factor * total / trained - (scaling.factor - 1)) ** (size / (size - 2))
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies = (1.0 / np.power(np.float32(base), exponents)).astype(np.float32)
    if scaling is not None and scaling.rope_type == "linear":
        frequencies = frequencies / np.float32(scaling.factor)
    return frequencies


def rope_tables(config: TextConfig, positions: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines for positions [B, T] of texts of `totals` [B] tokens: two float32 [B, 1, T, D].

    The angles are multiplied in float32, as PyTorch's reference does it, so that equal positions give equal bits.
    """
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "dynamic":
        frequencies = np.stack([inverse_frequencies(config, int(total)) for total in totals])[:, None, :]  # [B, 1, D/2]
    else:
        frequencies = inverse_frequencies(config, 0)[None, None, :]
    angles = positions.astype(np.float32)[:, :, None] * frequencies  # [B, T, D/2]
    angles = np.concatenate((angles, angles), -1)[:, None]  # [B, 1, T, D]
    return np.cos(angles), np.sin(angles)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, T, D] by tables [B, 1, T, D]; dimension i pairs with i + D/2, as in Hugging Face's form."""
    half = x.shape[-1] // 2
    wide = x.astype(ms.float32)
    turned = ops.concat((-wide[..., half:], wide[..., :half]), -1)
    return (wide * cos + turned * sin).astype(x.dtype)
