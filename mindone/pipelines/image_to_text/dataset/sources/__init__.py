"""Sources: from folders, lists, tables and shards to Items, and from an Item to its Picture."""

from __future__ import annotations

from .base import InputError, ItemError, SourceOptions
from .kinds import KINDS
from .opening import open_source
from .reading import Reader, read_item

__all__ = [
    "KINDS",
    "InputError",
    "ItemError",
    "Reader",
    "SourceOptions",
    "open_source",
    "read_item",
]
