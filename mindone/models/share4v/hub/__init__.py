"""Named checkpoints: a table of presets, resumable and verified downloads, and a cache that works offline."""

from __future__ import annotations

from .errors import HubError, NoSpaceError
from .huggingface import RepoOptions
from .presets import PRESETS, Preset
from .resolution import is_checkpoint_name, resolve

__all__ = ["PRESETS", "HubError", "NoSpaceError", "Preset", "RepoOptions", "is_checkpoint_name", "resolve"]
