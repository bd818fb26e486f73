"""List files: one path or URL per line."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator

from ..state.records import Item
from ..state.regular_files import open_input
from .base import Location, ReaderOptions
from .item_builder import ItemBuilder


def list_file(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the inputs that a list file names.

    Paths are relative to the list file or to `image_root`. Spaces at the ends of a line are part of the path; empty
    lines are skipped.
    """
    base = os.path.abspath(options.image_root or os.path.dirname(location.path))
    shown_base = options.image_root or os.path.dirname(location.name)
    with open_input(location.path) as file:
        for number, line in enumerate(file):
            path = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
            path = path.rstrip(b"\r\n")
            if path:
                yield builder.build_reference(os.fsdecode(path), base, shown_base)
