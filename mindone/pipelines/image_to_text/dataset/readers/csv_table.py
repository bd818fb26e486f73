"""CSV and TSV tables; a row is located by its byte range, which includes line ends inside quotes."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, cast

from ..state.records import Item
from .base import InputError, Location, ReaderOptions
from .column_names import shown
from .item_builder import ItemBuilder
from .lines import bounded_lines, too_long
from .rows import Table, has_image_column
from .text_encoding import open_text

MAX_FIELD_CHARACTERS = 2**26  # enough for an image in base64
DELIMITERS = {"csv": ",", "tsv": "\t"}
_DELIMITERS = (",", ";", "\t", "|")  # where the comma is the decimal point, Excel separates by semicolons
_HEAD_BYTES = 2**16  # in which the line of column names is searched


def csv_table(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the rows of a comma-separated file; its first row has the column names."""
    return _rows(location, options, builder, DELIMITERS["csv"])


def tsv_table(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the rows of a tab-separated file; its first row has the column names."""
    return _rows(location, options, builder, DELIMITERS["tsv"])


def parse_row(data: bytes, delimiter: str) -> list[str]:
    """Return the fields of one row.

    Raises:
        csv.Error: the row is malformed.
    """
    return next(_reader((line.decode("utf-8", "surrogateescape") for line in data.splitlines(True)), delimiter))


def _rows(location: Location, options: ReaderOptions, builder: ItemBuilder, delimiter: str) -> Iterator[Item]:
    text = open_text(location.path, location.name, options.encoding)
    with text.file as file:
        lines = _CountedLines(file)
        delimiter, has_separator_line = _delimiter(lines.head, delimiter, options)
        if has_separator_line:
            next(lines)
        reader = _reader(lines, delimiter)
        try:
            names = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{location.name}: the line of column names is malformed: {error}") from error
        if names is None:
            return
        while len(names) > 1 and not names[-1]:  # columns that were used once; Excel writes them in every row
            names.pop()
        if len(set(names)) < len(names):
            repeated = [name for name, count in Counter(names).items() if count > 1]
            raise InputError(f"{location.name}: two columns have the same name: {shown(repeated)}")
        table = Table.with_columns(location, options, builder, names)
        column = names.index(table.image)
        number = 0
        while True:
            start, first_line = lines.offset, lines.count + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield table.unreadable_item(number, f"line {first_line}: {_explain(str(error))}")
                number += 1
                continue
            if row is None:
                return
            if not any(row):  # an empty line, or a row of a spreadsheet that was emptied
                continue
            if any(row[len(names) :]):
                yield table.unreadable_item(number, f"line {first_line}: {len(row)} fields for {len(names)} columns")
            else:
                locator = {"kind": "csv", "path": location.path, "offset": start, "size": lines.offset - start}
                if text.encoding:
                    locator["encoding"] = text.encoding
                fields = dict(zip(names, row))  # noqa: B905  a row may have fewer fields
                yield table.item(number, fields, {**locator, "column": column, "delimiter": delimiter})
            number += 1


class _CountedLines:
    """Iterates over the lines of a file as text and counts lines and bytes; bytes that are not UTF-8 are preserved.

    Attributes:
        offset: bytes read so far.
        count: lines read so far.
        head: first characters of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        buffered = cast(io.BufferedReader, file)
        head = buffered.peek(_HEAD_BYTES)
        self.offset = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        buffered.read(self.offset)
        self.head = head[self.offset :].decode("utf-8", "surrogateescape")
        self.count = 0
        self._lines = bounded_lines(file)

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line, size = next(self._lines)
        self.offset += size
        self.count += 1
        if line is None:
            raise csv.Error(too_long(size))
        return line.decode("utf-8", "surrogateescape")


def _reader(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    # The limit belongs to the process; raise it, because a field may contain an image, and never lower it.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _delimiter(head: str, default: str, options: ReaderOptions) -> tuple[str, bool]:
    """Return the delimiter of a table, and whether its first line only names it, as Excel's `sep=;` does.

    It is the first of the usual ones that makes the header have a column of images; if none does, the one that makes
    most columns.
    """
    first = head.partition("\n")[0]
    named = re.fullmatch(r"\"?sep=(.)\"?\r?", first)
    if named:
        return named[1], True
    columns = {}
    for delimiter in dict.fromkeys((default, *_DELIMITERS)):
        try:
            columns[delimiter] = next(_reader(iter(head.splitlines(True)), delimiter), [])
        except csv.Error:
            continue
        if has_image_column(columns[delimiter], options):
            return delimiter, False
    return max(columns, key=lambda delimiter: len(columns[delimiter]), default=default), False


def _explain(error: str) -> str:
    if "unexpected end of data" in error:
        return "a quote is opened and never closed; the rest of the file was taken for this row"
    return error
