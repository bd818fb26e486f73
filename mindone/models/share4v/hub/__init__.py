"""Named checkpoints: a table of presets, resumable and verified downloads, and a cache that works offline."""

from __future__ import annotations

from .errors import HubError, NoSpaceError
from .options import RepoOptions
from .presets import PRESETS, Preset
from .resolution import is_adapter_name, is_checkpoint_name, resolve, resolve_adapter, split_tag

__all__ = [
    "PRESETS",
    "HubError",
    "NoSpaceError",
    "Preset",
    "RepoOptions",
    "is_adapter_name",
    "is_checkpoint_name",
    "resolve",
    "resolve_adapter",
    "split_tag",
]
