"""Second moments of the inputs of a matrix, which say how much errors of its weights change its outputs."""

from __future__ import annotations

import numpy as np

PIECE = 1024  # rows of the moments that are added to at once, so that the product takes little memory


class Moments:
    """The sum of x x^T over the inputs x of a matrix.

    Attributes:
        squares: float32 [K, K]; only its lower triangle is valid.
        count: the number of inputs.
    """

    def __init__(self, size: int) -> None:
        self.squares = np.zeros((size, size), np.float32)
        self.count = 0

    def add(self, inputs: np.ndarray) -> None:
        """Add inputs, float32 [T, K]."""
        for first in range(0, len(self.squares), PIECE):
            piece = slice(first, first + PIECE)
            self.squares[piece, : piece.stop] += inputs[:, piece].T @ inputs[:, : piece.stop]
        self.count += len(inputs)
