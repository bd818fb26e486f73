"""Checkpoints: reading every published form, strict loading, saving, conversion."""

from __future__ import annotations

from .conversion import convert
from .errors import CheckpointError, UnsafeCheckpointError
from .layout import CheckpointLayout, locate
from .loading import iterate_weights, load_weights
from .saving import save_weights

__all__ = [
    "CheckpointError",
    "CheckpointLayout",
    "UnsafeCheckpointError",
    "convert",
    "iterate_weights",
    "load_weights",
    "locate",
    "save_weights",
]
