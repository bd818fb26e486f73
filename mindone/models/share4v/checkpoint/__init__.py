"""Checkpoints: reading every published format, strict loading, saving, conversion."""

from __future__ import annotations

from .conversion import convert
from .errors import CheckpointError, UnsafeCheckpointError
from .layout import Checkpoint
from .loading import load_weights
from .saving import save_weights

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "UnsafeCheckpointError",
    "convert",
    "load_weights",
    "save_weights",
]
