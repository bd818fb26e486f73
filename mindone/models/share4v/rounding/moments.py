"""Second moments of the inputs of a matrix, which say how much errors of its weights change its outputs."""

from __future__ import annotations

import numpy as np

PIECE = 1024  # rows of the matrices of moments that are added to at once, so that the product takes little memory


class Moments:
    """Sums of x x^T over the inputs x of a matrix, and of (y - x) x^T, where y are its inputs in the exact model.

    Attributes:
        squares: float32 [K, K], the sum of x x^T; only its lower triangle is valid.
        missing: float32 [K, K], the sum of (y - x) x^T; None if no exact inputs were added.
        count: the number of inputs.
    """

    def __init__(self, size: int) -> None:
        self.squares = np.zeros((size, size), np.float32)
        self.missing: np.ndarray | None = None
        self.count = 0

    def add(self, inputs: np.ndarray, exact: np.ndarray | None = None) -> None:
        """Add inputs, float32 [T, K], and the same tokens' inputs in the exact model, if they are known."""
        if exact is not None and self.missing is None:
            self.missing = np.zeros_like(self.squares)
        difference = None if exact is None else exact - inputs
        for first in range(0, len(self.squares), PIECE):
            piece = slice(first, first + PIECE)
            self.squares[piece, : piece.stop] += inputs[:, piece].T @ inputs[:, : piece.stop]
            if difference is not None and self.missing is not None:
                self.missing[piece] += difference[:, piece].T @ inputs
        self.count += len(inputs)
