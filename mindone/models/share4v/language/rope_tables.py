"""Tables of rotary position embedding (Su et al. 2021), computed on the host."""

from __future__ import annotations

import numpy as np

from ..configuration import TextConfig


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
