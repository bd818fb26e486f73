"""GPTQ (Frantar et al. 2022) in the form of LDLQ (Chee et al. 2023), for the super-blocks of int4."""

from __future__ import annotations

import numpy as np

from ..kernels.library import library
from ..kernels.packing import GROUP, SUPER, RoundedRows
from .importance import normalized
from .moments import Moments

# Times the number of inputs of the matrix, divided by that of samples, and times the mean of the second moments: added
# to their diagonal. The fewer samples there are, the more of the moments is chance.
DAMPING = 0.4
SWEEPS = 2  # of coordinate descent over all codes, behind GPTQ
LARGEST = 65504.0 * 60  # weight of which a super-block can have a float16 scale, as in csrc/pack.h


def gptq(weight: np.ndarray, moments: Moments) -> RoundedRows:
    """Round weight [N, K]; columns make up for the rounding errors of those behind them.

    With the second moments H = L D L^T, damped, L unit lower triangular, and the errors E = W - Q, the error of the
    outputs is the sum of D[k] * (E L)[k]^2 over the columns k. A super-block's columns are rounded together
    (csrc/error_feedback.h), the last super-block first. Then coordinate descent changes single codes, since a column
    could not know the errors of those in front of it.

    Args:
        weight: float32 [N, K].
        moments: of the inputs. They are changed in place: of the widest matrix, a 7B has half a gigabyte.

    Raises:
        OverflowError: a weight is too large for int4.
    """
    largest = max(float(weight.max()), -float(weight.min()))
    if largest > LARGEST:
        raise OverflowError(f"values up to {largest:.3g} are too large for int4, whose limit is {LARGEST:.3g}")
    columns = weight.shape[1]
    pivots, lower = _factors(moments)
    # Super-block by super-block `errors` becomes W - Q, and `left` becomes E L sqrt(D).
    errors = np.zeros_like(weight)
    left = np.empty_like(weight)
    importance = normalized(pivots**2)
    codes = np.empty(weight.shape, np.uint8)
    pairs = np.empty((len(weight), -(-columns // GROUP), 2), np.int8)
    scales = np.empty((len(weight), -(-columns // SUPER)), np.float16)
    for block in reversed(_blocks(columns)):
        inner, behind = lower[block, block], slice(block.stop, columns)
        targets = weight[:, block] @ inner
        targets += errors[:, behind] @ lower[behind, block]
        values = targets.copy()
        rounded = library().round_super_block(values, importance[block], np.ascontiguousarray(inner.T))
        codes[:, block], pairs[:, _groups(block)], scales[:, block.start // SUPER] = rounded
        errors[:, block] = weight[:, block] - values
        left[:, block] = (targets - values @ inner) * pivots[block]
    del errors
    lower *= pivots
    result = RoundedRows(codes, pairs, scales)
    for _ in range(SWEEPS):
        _refine(result, left, lower)
    return result


def _refine(rounded: RoundedRows, left: np.ndarray, factor: np.ndarray) -> None:
    """Change each code to the best one while all others stay, in place.

    Args:
        rounded: the matrix.
        left: the errors E times the factor, [N, K], which follow the codes.
        factor: a lower triangular matrix whose product with its transpose is H.
    """
    for block in _blocks(len(factor)):
        rows = factor[block, : block.stop]
        moment, changes = rows @ rows.T, left[:, : block.stop] @ rows.T
        codes = np.ascontiguousarray(rounded.codes[:, block])
        pairs = np.ascontiguousarray(rounded.pairs[:, _groups(block)])
        scales = np.ascontiguousarray(rounded.scales[:, block.start // SUPER])
        library().refine_super_block(changes, moment, codes, pairs, scales)
        rounded.codes[:, block] = codes
        left[:, : block.stop] += changes @ rows


def _blocks(columns: int) -> list[slice]:
    """Return the columns of each super-block."""
    return [slice(first, min(first + SUPER, columns)) for first in range(0, columns, SUPER)]


def _groups(block: slice) -> slice:
    """Return the groups of a super-block's columns."""
    return slice(block.start // GROUP, -(-block.stop // GROUP))


def _factors(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Return sqrt(D) [K], and L [K, K], valid below the diagonal and within super-blocks, of the damped second moments.

    `squares` becomes L: a Cholesky factorization, block by block in place.
    """
    lower, size = moments.squares, len(moments.squares)
    mean = float(np.diag(lower).mean())
    if not np.isfinite(mean) or mean <= 0:  # nothing is known about the inputs
        lower[:] = np.eye(size, dtype=np.float32)
        return np.ones(size, np.float32), lower
    lower /= np.float32(mean)
    damping = DAMPING * size / max(moments.count, 1)
    for block in _blocks(size):
        here, before, below = slice(block.start, None), slice(0, block.start), slice(block.stop, None)
        lower[here, block] -= lower[here, before] @ lower[block, before].T
        corner, damping = _cholesky(lower[block, block].astype(np.float64), damping)
        lower[block, block] = corner
        lower[below, block] = lower[below, block] @ np.linalg.inv(corner).T.astype(np.float32)
    pivots = np.diag(lower).copy()
    lower /= pivots
    return pivots, lower


def _cholesky(block: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
    """Return the Cholesky factor of a block and its damping, which grows until the factorization succeeds."""
    while True:
        try:
            return np.linalg.cholesky(block + damping * np.eye(len(block))), damping
        except np.linalg.LinAlgError:
            damping *= 10
