"""JSON tables: an array of objects, or an object a line; each is known by where its bytes are."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, BinaryIO

from .base import Found, InputError, Place, ReaderOptions
from .rows import IMAGE_COLUMNS, Table

MAX_ELEMENT_BYTES = 2**28  # room for a picture in base64
_CHUNK = 2**20
_MOST_EARLY = 1000  # entries looked at for one that tells the columns
_SPACE = b" \t\r\n"
# A string, or a sign that opens, closes or separates; a lone quote is a string that the piece at hand cuts off.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
Element = tuple[int, bytes, "str | None"]  # offset, bytes, what is wrong with it


def jsonl_table(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield the objects of a file with one a line; a line that is none fails by itself."""
    with open(place.path, "rb") as file:
        yield from _rows(place, options, _lines(file))


def json_table(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield the objects of an array, read piece by piece; or of lines, which some call .json.

    Raises:
        InputError: it is neither.
    """
    with open(place.path, "rb") as file:
        start = file.read(_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip(_SPACE)[:1]
        file.seek(0)
        if start == b"[":
            yield from _rows(place, options, elements(file))
        elif start == b"{" and _begins_with_object_lines(file):
            file.seek(0)
            yield from _rows(place, options, _lines(file))
        elif start:
            raise InputError(
                f"{place.name}: expected an array of objects, or an object a line; a file with an object around the "
                "array can be brought into this form by `jq .NAME`"
            )


def elements(file: BinaryIO) -> Iterator[Element]:
    """Yield where each element of a JSON array begins, its bytes, and what is wrong with it, if anything.

    Memory holds one element and a piece of the file.
    """
    file.seek(0)
    data = file.read(_CHUNK)
    base = 0  # where `data` begins in the file
    begin = place = data.index(b"[") + 1  # of the element, and of what was not looked at
    depth, more = 1, _CHUNK
    while depth:
        found = _TOKEN.search(data, place)
        if found is None or found[0] == b'"':
            place = len(data) if found is None else found.start()
            piece = file.read(more)
            if not piece:
                is_torn = found is not None or depth > 1
                if is_torn or data[begin:].strip(_SPACE):
                    yield base + begin, data[begin:], "the file ends in the middle of it" if is_torn else None
                if not is_torn:
                    yield base + len(data), b"", "the file ends before the array does"
                return
            if len(data) - begin > MAX_ELEMENT_BYTES:
                yield base + begin, b"", f"it is longer than {MAX_ELEMENT_BYTES:,} bytes; is a quote missing?"
                return
            more = max(_CHUNK, len(data) - begin)  # a long element is not looked through again for every piece
            data, base, place, begin = data[begin:] + piece, base + begin, place - begin, 0
            continue
        sign, place = found[0], found.end()
        depth += (sign in b"[{") - (sign in b"]}") if len(sign) == 1 else 0
        if depth == 0 or (depth == 1 and sign == b","):
            text = data[begin : found.start()]
            if text.strip(_SPACE) or sign == b",":
                yield base + begin, text, None
            begin = place
    if data[place:].strip(_SPACE) or file.read(_CHUNK).strip(_SPACE):
        yield base + place, b"", "there is more in the file after the array's end"


def _lines(file: BinaryIO) -> Iterator[Element]:
    offset = 0
    for line in file:
        skipped = len(codecs.BOM_UTF8) if not offset and line.startswith(codecs.BOM_UTF8) else 0
        if line[skipped:].strip(_SPACE):
            yield offset + skipped, line[skipped:], None
        offset += len(line)


def _rows(place: Place, options: ReaderOptions, found: Iterable[Element]) -> Iterator[Found]:
    """Turn elements into inputs; the first one that has a column with pictures tells the columns."""
    table: Table | None = None
    problem: InputError | None = None
    early: list[Callable[[Table], Found]] = []
    for number, element in enumerate(found):
        row, reason = _parse(element)
        if table is None and reason is None:
            try:
                table = Table.of(place, options, list(row))
            except InputError as error:
                problem = problem or error
        listed = partial(_listed, number, element, row, reason)
        if table is None:
            early.append(listed)
            if len(early) == _MOST_EARLY:
                break
            continue
        yield from (one(table) for one in early)
        early.clear()
        yield listed(table)
    if table is None and (problem or early):
        raise problem or InputError(f"{place.name}: there is no object in it that can be read")


def _listed(number: int, element: Element, row: dict[str, Any], reason: str | None, table: Table) -> Found:
    if reason is not None:
        return table.broken(number, reason)
    offset, data, _ = element
    inline = {"kind": "json", "path": table.place.path, "offset": offset, "size": len(data), "column": table.image}
    return table.row(number, row, inline)


def _begins_with_object_lines(file: BinaryIO) -> bool:
    for line in iter(lambda: file.readline(MAX_ELEMENT_BYTES), b""):
        text = line.removeprefix(codecs.BOM_UTF8).strip(_SPACE)
        if text:
            return _parse((0, text, None))[1] is None
    return False


def _parse(element: Element) -> tuple[dict[str, Any], str | None]:
    """Return an entry as an object, or why it is none; a text alone is the name of a picture."""
    _, data, problem = element
    if problem is not None:
        return {}, problem
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, f"not UTF-8 at byte {error.start} of the entry"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    if isinstance(value, str):
        return {IMAGE_COLUMNS[0]: value}, None
    return (value, None) if isinstance(value, dict) else ({}, f"expected an object, got {type(value).__name__}")
