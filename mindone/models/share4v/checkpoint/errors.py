"""What can be wrong with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 10


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, or does not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A torch file asks for something other than tensors when it is opened."""


def listing(items: Sequence[str]) -> str:
    """Join `items` for a message: the first ten, and how many more there are."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")
