"""Sources: from folders, lists, tables and shards to Items, and from an Item to its Picture."""

from __future__ import annotations

from .base import STATE_SUFFIX, InputError, ItemError, ReaderOptions
from .inputs import list_inputs
from .kinds import KINDS
from .patterns import split_pattern
from .reading import Reader, read_item

__all__ = [
    "KINDS",
    "STATE_SUFFIX",
    "InputError",
    "ItemError",
    "Reader",
    "ReaderOptions",
    "list_inputs",
    "read_item",
    "split_pattern",
]
