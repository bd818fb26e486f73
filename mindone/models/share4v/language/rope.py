"""Rotary position embedding (Su et al. 2021): tables computed on the host, and their application."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..configuration import TextConfig
from ..nn.device_operators import DeviceOperators


def inverse_frequencies(config: TextConfig, total: int) -> np.ndarray:
    """Return the rotation per position of each pair of dimensions, in radians, float32 [D / 2].

    Args:
        config: uses `rope_theta`, `head_size` and `rope_scaling`. Linear scaling divides every angle (Chen et al.
            2023); dynamic NTK scaling raises the base once a sequence is longer than `max_position_embeddings`.
        total: length of the sequence in tokens, for dynamic scaling.
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
    """Return cos and sin, float32 [B, 1, T, D], for positions [B, T] of sequences of `totals` [B] tokens.

    The angles are computed in float32, as the PyTorch reference does, which gives the same bits.
    """
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "dynamic":
        frequencies = np.stack([inverse_frequencies(config, int(total)) for total in totals])[:, None, :]  # [B, 1, D/2]
    else:
        frequencies = inverse_frequencies(config, 0)[None, None, :]
    angles = positions.astype(np.float32)[:, :, None] * frequencies  # [B, T, D/2]
    angles = np.concatenate((angles, angles), -1)[:, None]  # [B, 1, T, D]
    return np.cos(angles), np.sin(angles)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, T, D] with tables [B, 1, T, D]; dimension i pairs with i + D / 2, as in Hugging Face's code."""
    half = x.shape[-1] // 2
    wide = x.astype(ms.float32)
    rotated = ops.concat((-wide[..., half:], wide[..., :half]), -1)
    return (wide * cos + rotated * sin).astype(x.dtype)


class Rotary(nn.Cell):
    """Splits a projection into heads and rotates each of them, in float32.

    A device's `rotary_position_embedding` is called with the tokens of all sequences as one sequence, [1, B * T, H, D],
    and tables [1, B * T, 1, D]. With heads before tokens its documentation excludes batches with more heads than eight
    times the tokens, which every decoding step is. A single head could still be interpreted that way, so it is passed
    as [1, 1, B * T, D].
    """

    def __init__(self, heads: int, head_size: int, operators: DeviceOperators) -> None:
        super().__init__()
        self.heads, self.head_size = heads, head_size
        self.operator: Any = operators.rotary_position_embedding
        self.is_fused = self.operator is not None and operators.rotary_limits.allow(heads, head_size)

    def construct(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, H * D], tables float32 [B, 1, T, D] -> [B, H, T, D]."""
        batch, length = x.shape[:2]
        split = (batch, length, self.heads, self.head_size)
        if self.is_fused:
            rows, size = batch * length, self.head_size
            tokens = (1, 1, rows, size) if self.heads == 1 else (1, rows, self.heads, size)
            table = (1, 1, rows, size) if self.heads == 1 else (1, rows, 1, size)
            wide = x.astype(ms.float32).reshape(tokens)
            rotated = self.operator(wide, cos.reshape(table), sin.reshape(table), 0)
            return rotated.astype(x.dtype).reshape(split).transpose(0, 2, 1, 3)
        return apply_rope(x.reshape(split).transpose(0, 2, 1, 3), cos, sin)
