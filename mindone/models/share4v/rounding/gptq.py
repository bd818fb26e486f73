"""GPTQ (Frantar et al. 2022) in the form of LDLQ (Chee et al. 2023), for the super-blocks of int4."""

from __future__ import annotations

import numpy as np

from ..kernels.library import library
from ..kernels.packing import SUPER, RoundedRows

DAMPING = 0.01  # of the second moments' mean, added to their diagonal


def gptq(weight: np.ndarray, second_moment: np.ndarray) -> RoundedRows:
    """Round weight [N, K] column by column; each column makes up for the rounding errors of those before it.

    With the factors H = U D U^T, U unit upper triangular, column k is rounded after adding the errors of the columns
    before it times column k of U, which minimizes the error of the outputs as far as later columns can correct it.

    Args:
        weight: float32 [N, K].
        second_moment: H, [K, K]: the mean of x x^T over the inputs x of the matrix.
    """
    columns = weight.shape[1]
    importance = np.diag(second_moment).astype(np.float32)
    importance = np.maximum(importance / max(float(importance.mean()), 1e-30), 1e-6)
    upper = _unit_upper(second_moment)
    errors = np.empty_like(weight)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for first in range(0, columns, SUPER):
        end = min(columns, first + SUPER)
        part = np.ascontiguousarray(weight[:, first:end])
        target = part + errors[:, :first] @ upper[:first, first:end] if first else part
        feedback = np.ascontiguousarray(upper[first:end, first:end].T)
        rounded = library().round_super_block(part, importance[first:end].copy(), feedback, target)
        parts.append(rounded[:3])
        errors[:, first:end] = rounded[3]
    codes, pairs, scales = zip(*parts, strict=True)
    return RoundedRows(np.concatenate(codes, 1), np.concatenate(pairs, 1), np.stack(scales, 1))


def _unit_upper(second_moment: np.ndarray) -> np.ndarray:
    """Return U of H = U D U^T, float32 [K, K]; the damping grows until the factorization succeeds."""
    size = len(second_moment)
    mean = max(float(np.diag(second_moment).mean()), 1e-30)
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        damped = second_moment[::-1, ::-1].copy()
        damped[np.arange(size), np.arange(size)] += damping * mean
        try:
            upper = np.linalg.cholesky(damped)[::-1, ::-1]
        except np.linalg.LinAlgError:
            continue
        return np.ascontiguousarray(upper / np.diag(upper), np.float32)
    return np.eye(size, dtype=np.float32)
