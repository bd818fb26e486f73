"""Sources: from folders, lists, tables and shards to Items, and from an Item to its Picture."""

from __future__ import annotations

from .base import STATE, InputError, ItemError, SourceOptions
from .kinds import KINDS
from .opening import open_source
from .patterns import split_pattern
from .reading import Reader, read_item

__all__ = [
    "KINDS",
    "STATE",
    "InputError",
    "ItemError",
    "Reader",
    "SourceOptions",
    "open_source",
    "read_item",
    "split_pattern",
]
