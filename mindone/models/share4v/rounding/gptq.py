"""GPTQ (Frantar et al. 2022) in the form of LDLQ (Chee et al. 2023), for the super-blocks of int4."""

from __future__ import annotations

import numpy as np

from ..kernels.library import library
from ..kernels.packing import GROUP, SUPER, RoundedRows
from .importance import normalized

DAMPING = 0.01  # of the second moments' mean, added to their diagonal
BLOCK = 256  # columns whose errors are fed back one by one; those of earlier blocks come in one product


def gptq(weight: np.ndarray, second_moment: np.ndarray) -> RoundedRows:
    """Round weight [N, K] column by column; each column makes up for the rounding errors of those before it.

    The scales of all super-blocks come first. Then columns are rounded in the order of their inputs' mean squares, so
    that as many columns as possible can make up for the important ones. With the factors H = U D U^T of the second
    moments in that order, U unit upper triangular, column k is rounded after adding the errors of the columns before it
    times column k of U.

    Args:
        weight: float32 [N, K].
        second_moment: H, [K, K]: the mean of x x^T over the inputs x of the matrix.
    """
    columns = weight.shape[1]
    variance = np.diag(second_moment)
    pairs, scales = _scales(weight, normalized(variance))
    order = np.argsort(-variance, kind="stable")
    ordered = np.ascontiguousarray(weight.T[order], np.float32)  # [K, N]
    d = scales.T[order // SUPER].astype(np.float32)  # [K, N]
    step, offset = (d * pairs[:, order // GROUP, part].T for part in (0, 1))
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
    upper = _unit_upper(second_moment[np.ix_(order, order)])
    errors, codes = np.empty_like(ordered), np.empty((columns, len(weight)), np.uint8)
    for first in range(0, columns, BLOCK):
        end = min(columns, first + BLOCK)
        targets = ordered[first:end] + upper[:first, first:end].T @ errors[:first]
        for k in range(first, end):
            target = targets[k - first] + upper[first:k, k] @ errors[first:k]
            code = np.clip(np.rint((target - offset[k]) * inverse[k]), -8, 7)
            errors[k] = ordered[k] - (code * step[k] + offset[k])
            codes[order[k]] = code + 8
    return RoundedRows(np.ascontiguousarray(codes.T), pairs, scales)


def _scales(weight: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and offsets int8 [N, G, 2] and float16 scales [N, S] that round the weights best one by one."""
    parts = []
    for first in range(0, weight.shape[1], SUPER):
        part = np.ascontiguousarray(weight[:, first : first + SUPER], np.float32)
        parts.append(library().round_super_block(part, importance[first : first + SUPER].copy()))
    return np.concatenate([part[1] for part in parts], 1), np.stack([part[2] for part in parts], 1)


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
