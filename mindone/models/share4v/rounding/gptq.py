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
    variance = np.diag(second_moment).copy()
    pairs, scales = _scales(weight, normalized(variance))
    order = np.argsort(-variance, kind="stable")
    upper = _unit_upper(second_moment, order)
    ordered = np.ascontiguousarray(weight.T[order], np.float32)  # [K, N]
    errors, codes = np.empty_like(ordered), np.empty((columns, len(weight)), np.uint8)
    for first in range(0, columns, BLOCK):
        end = min(columns, first + BLOCK)
        d = scales.T[order[first:end] // SUPER].astype(np.float32)  # [B, N]
        step, offset = (d * pairs[:, order[first:end] // GROUP, part].T for part in (0, 1))
        inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
        targets = ordered[first:end] + upper[:first, first:end].T @ errors[:first]
        for k in range(first, end):
            target = targets[k - first] + upper[first:k, k] @ errors[first:k]
            code = np.clip(np.rint((target - offset[k - first]) * inverse[k - first]), -8, 7)
            errors[k] = ordered[k] - (code * step[k - first] + offset[k - first])
            codes[order[k]] = code + 8
    return RoundedRows(np.ascontiguousarray(codes.T), pairs, scales)


def _scales(weight: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and offsets int8 [N, G, 2] and float16 scales [N, S] that round the weights best one by one."""
    parts = []
    for first in range(0, weight.shape[1], SUPER):
        part = np.ascontiguousarray(weight[:, first : first + SUPER], np.float32)
        parts.append(library().round_super_block(part, importance[first : first + SUPER].copy()))
    return np.concatenate([part[1] for part in parts], 1), np.stack([part[2] for part in parts], 1)


def _unit_upper(second_moment: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return U of H = U D U^T, float32 [K, K], for the second moments H in this order of the inputs.

    The damping grows until the factorization succeeds. Large matrices are changed in place: of the widest one, a 7B
    has half a gigabyte.
    """
    size, backwards = len(second_moment), order[::-1]
    mean = max(float(np.diag(second_moment)[order].mean()), 1e-30)
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        damped = second_moment[np.ix_(backwards, backwards)]
        damped[np.arange(size), np.arange(size)] += damping * mean
        try:
            lower = np.linalg.cholesky(damped)  # of the reversed matrix, so that reversing it gives the upper factor
        except np.linalg.LinAlgError:
            continue
        del damped
        lower /= np.diag(lower).copy()
        return np.ascontiguousarray(lower[::-1, ::-1], np.float32)
    return np.eye(size, dtype=np.float32)
