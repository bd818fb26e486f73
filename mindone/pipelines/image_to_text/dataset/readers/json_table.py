"""JSON tables: an array of objects, one object per line, or an object (see `json_object.py`)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from ..state.records import Item
from .base import InputError, Location, ReaderOptions
from .item_builder import ItemBuilder
from .json_object import EXPECTED, object_rows
from .json_rows import CHUNK, MAX_ELEMENT_BYTES, SPACE, columns_of, elements, lines_of, parse, rows
from .rows import has_image_column
from .text_encoding import TextFile, open_text


def jsonl_table(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the objects of a file with one object per line; a malformed line is an Item that fails."""
    text = open_text(location.path, location.name, options.encoding)
    with text.file as file:
        yield from rows(location, options, builder, lines_of(file), text.encoding)


def json_table(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the rows of an array, which is read in chunks; of lines, which some tools write to .json files; or of an
    object (see `json_object.py`).

    Raises:
        InputError: the file has none of these formats.
    """

    def opened() -> TextFile:
        return open_text(location.path, location.name, options.encoding)

    with opened().file as file:
        start = file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip(SPACE)[:1]
    if start == b"[":
        text = opened()
        with text.file as file:
            yield from rows(location, options, builder, elements(file), text.encoding)
    elif start == b"{":
        with opened().file as file:
            has_lines = _has_object_lines(file, options)
        text = opened()
        with text.file as file:
            if has_lines:
                yield from rows(location, options, builder, lines_of(file), text.encoding)
            else:
                yield from object_rows(location, options, builder, elements(file, b"{"), text.encoding)
    elif start:
        raise InputError(f"{location.name}: {EXPECTED}")


def _has_object_lines(file: BinaryIO, options: ReaderOptions) -> bool:
    """Return whether a file has one object per line: the first line is a row, or the second begins as an object too."""
    lines = (
        line.removeprefix(codecs.BOM_UTF8).strip(SPACE) for line in iter(partial(file.readline, MAX_ELEMENT_BYTES), b"")
    )
    texts = (line for line in lines if line)
    row, reason = parse((0, next(texts, b""), None))
    if reason is not None:
        return False
    return has_image_column(columns_of(row, options), options) or next(texts, b"").startswith(b"{")
