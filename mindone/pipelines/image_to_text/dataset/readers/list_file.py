"""A list file: a path or an address a line."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator

from .base import Found, Place, ReaderOptions, listed_file


def list_file(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield what a list names; a path is relative to the list, its spaces are part of it. Empty lines say nothing."""
    base = os.path.abspath(options.image_root or os.path.dirname(place.path))
    shown_base = options.image_root or os.path.dirname(place.name)
    with open(place.path, "rb") as file:
        for number, line in enumerate(file):
            path = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
            path = path.rstrip(b"\r\n")
            if path:
                yield listed_file(os.fsdecode(path), base, shown_base, options, {})
