"""List files: one path or URL per line."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator

from ..state.records import Item
from .base import Location, ReaderOptions
from .item_builder import ItemBuilder
from .lines import bounded_lines, too_long
from .text_encoding import open_text

MAX_REFERENCE_BYTES = 2**26  # of a path, a URL or a data URI


def list_file(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the inputs that a list file names.

    Paths are relative to the list file or to `image_root`. Spaces at the ends of a line are part of the path; empty
    lines are skipped.
    """
    base = os.path.abspath(options.image_root or os.path.dirname(location.path))
    shown_base = options.image_root or os.path.dirname(location.name)
    with open_text(location.path, location.name, options.encoding).file as file:
        for number, (line, size) in enumerate(bounded_lines(file, MAX_REFERENCE_BYTES)):
            if line is None:
                key = f"{location.prefix}{os.path.basename(location.path)}-{number + 1}"
                yield builder.build_failure(key, location.name, too_long(size, MAX_REFERENCE_BYTES))
                continue
            path = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
            path = path.rstrip(b"\r\n")
            if path:
                yield builder.build_reference(os.fsdecode(path), base, shown_base)
