"""Checkpoints: reading every published format, strict loading, saving."""

from __future__ import annotations

from .errors import CheckpointError, UnsafeCheckpointError
from .layout import Checkpoint
from .loading import load_weights
from .saving import save_weights

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "UnsafeCheckpointError",
    "load_weights",
    "save_weights",
]
