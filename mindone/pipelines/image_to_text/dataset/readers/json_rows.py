"""Rows of JSON files: the elements of an array or the lines, each located by its byte range."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO

from ..state.records import Item
from .base import InputError, Location, ReaderOptions
from .column_names import has, nested
from .item_builder import ItemBuilder
from .lines import bounded_lines, too_long
from .rows import IMAGE_COLUMNS, Table
from .text_encoding import not_utf8

MAX_ELEMENT_BYTES = 2**28  # enough for an image in base64
CHUNK = 2**20
_MAX_EARLY_ROWS = 1000  # rows to search for one that has an image column
SPACE = b" \t\r\n"
# A string, or a character that opens, closes or separates. A lone quote is a string that ends after the current chunk.
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
Element = tuple[int, bytes, "str | None"]  # offset in the file, bytes, and the reason if it cannot be read


def elements(file: BinaryIO, opening: bytes = b"[") -> Iterator[Element]:
    """Yield the elements of a JSON array, or the entries of an object, without parsing them.

    Memory holds one of them and one chunk of the file.

    Args:
        file: at its start.
        opening: the first character of the array (`[`) or object (`{`).
    """
    data = file.read(CHUNK)
    base = 0  # offset of `data` in the file
    begin = position = data.index(opening) + 1  # start of the current element; next byte to scan
    depth, read_size = 1, CHUNK
    while depth:
        found = TOKEN.search(data, position)
        if found is None or found[0] == b'"':  # the current chunk is used up
            position = len(data) if found is None else found.start()
            chunk = file.read(read_size)
            if not chunk:
                is_torn = found is not None or depth > 1
                if is_torn or data[begin:].strip(SPACE):
                    yield base + begin, data[begin:], "the file ends in the middle of this element" if is_torn else None
                if not is_torn:
                    yield base + len(data), b"", "the file ends before the array does"
                return
            if len(data) - begin > MAX_ELEMENT_BYTES:
                yield base + begin, b"", f"it is longer than {MAX_ELEMENT_BYTES:,} bytes; is a quote missing?"
                return
            read_size = max(CHUNK, len(data) - begin)  # grow with the element, so that copying it stays linear
            data, base, position, begin = data[begin:] + chunk, base + begin, position - begin, 0
            continue
        token, position = found[0], found.end()
        depth += (token in b"[{") - (token in b"]}") if len(token) == 1 else 0
        if depth == 0 or (depth == 1 and token == b","):
            text = data[begin : found.start()]
            if text.strip(SPACE) or token == b",":
                yield base + begin, text, None
            begin = position
    if data[position:].strip(SPACE) or file.read(CHUNK).strip(SPACE):
        yield base + position, b"", "there is more data after the end of the array"


def lines_of(file: BinaryIO) -> Iterator[Element]:
    """Yield the lines of a file that are not empty."""
    offset = 0
    for line, size in bounded_lines(file, MAX_ELEMENT_BYTES):
        if line is None:
            yield offset, b"", too_long(size, MAX_ELEMENT_BYTES)
            offset += size
            continue
        skipped = len(codecs.BOM_UTF8) if not offset and line.startswith(codecs.BOM_UTF8) else 0
        if line[skipped:].strip(SPACE):
            yield offset + skipped, line[skipped:], None
        offset += size


def rows(
    location: Location,
    options: ReaderOptions,
    builder: ItemBuilder,
    found: Iterable[Element],
    encoding: str,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Iterator[Item]:
    """Yield the Items of elements; the first element with an image column determines the columns.

    `complete` adds to a row what another part of the file says about it.
    """
    table: Table | None = None
    problem: InputError | None = None
    early: list[Callable[[Table], Item]] = []  # elements before that one
    for number, element in enumerate(found):
        row, reason = parse(element)
        if complete is not None and reason is None:
            row = complete(row)
        if table is None and reason is None:
            try:
                table = Table.with_columns(location, options, builder, columns_of(row, options))
            except InputError as error:
                problem = problem or error
        make_item = partial(_item, number, element, row, reason, encoding)
        if table is None:
            early.append(make_item)
            if len(early) == _MAX_EARLY_ROWS:
                break
            continue
        yield from (make_early_item(table) for make_early_item in early)
        early.clear()
        yield make_item(table)
    if table is None and (problem or early):
        raise problem or InputError(f"{location.name}: none of its rows is a JSON object")


def columns_of(row: Mapping[str, Any], options: ReaderOptions) -> list[str]:
    """Return the columns of a row, with dotted names of nested values."""
    columns = [*row, *nested(row)]
    named = (options.image_column, options.caption_column, options.key_column)
    return columns + [name for name in named if name is not None and name not in columns and has(row, name)]


def _item(number: int, element: Element, row: dict[str, Any], reason: str | None, encoding: str, table: Table) -> Item:
    if reason is not None:
        return table.unreadable_item(number, reason)
    offset, data, _ = element
    locator = {"kind": "json", "path": table.location.path, "offset": offset, "size": len(data), "column": table.image}
    return table.item(number, row, {**locator, "encoding": encoding} if encoding else locator)


def parse(element: Element) -> tuple[dict[str, Any], str | None]:
    """Return an element as an object, or the reason why it is not one; a plain string is the path of an image."""
    _, data, problem = element
    if problem is not None:
        return {}, problem
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, f"not UTF-8 at byte {error.start} of the element; {not_utf8(data)}"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    if isinstance(value, str):
        return {IMAGE_COLUMNS[0]: value}, None
    return (value, None) if isinstance(value, dict) else ({}, f"expected an object, got {type(value).__name__}")
