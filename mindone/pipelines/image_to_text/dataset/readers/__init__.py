"""Readers: list folders, list files, tables and shards as Items, and read the image or video of an Item."""

from __future__ import annotations

from .base import InputError, ItemError, ReaderOptions
from .formats import KINDS
from .inputs import list_inputs
from .patterns import split_pattern
from .reader import Reader, read_item, read_task

__all__ = [
    "KINDS",
    "InputError",
    "ItemError",
    "Reader",
    "ReaderOptions",
    "list_inputs",
    "read_item",
    "read_task",
    "split_pattern",
]
