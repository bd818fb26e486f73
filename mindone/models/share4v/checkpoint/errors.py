"""Errors of reading checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

MAX_ITEMS = 10


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, or does not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A torch file contains pickled objects other than tensors, which are not loaded."""


def listing(items: Sequence[str]) -> str:
    """Join `items` for a message: the first ten, and the number of the rest."""
    more = len(items) - MAX_ITEMS
    return ", ".join(items[:MAX_ITEMS]) + (f" and {more} more" if more > 0 else "")
