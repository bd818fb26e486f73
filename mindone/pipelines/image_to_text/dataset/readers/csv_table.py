"""CSV and TSV tables; a row is known by where its bytes are, line ends inside quotes included."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from typing import BinaryIO

from .base import Found, InputError, Place, ReaderOptions
from .rows import Table

MAX_FIELD_CHARACTERS = 2**26  # room for a picture in base64
DELIMITERS = {"csv": ",", "tsv": "\t"}


def csv_table(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield the rows of a file separated by commas; the first one names the columns."""
    return _rows(place, options, DELIMITERS["csv"])


def tsv_table(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield the rows of a file separated by tabs; the first one names the columns."""
    return _rows(place, options, DELIMITERS["tsv"])


def parse_row(data: bytes, delimiter: str) -> list[str]:
    """Return the fields of one row's bytes.

    Raises:
        csv.Error: the row is broken.
    """
    return next(_reader((line.decode("utf-8", "surrogateescape") for line in data.splitlines(True)), delimiter))


def _rows(place: Place, options: ReaderOptions, delimiter: str) -> Iterator[Found]:
    with open(place.path, "rb") as file:
        lines = _Lines(file)
        reader = _reader(lines, delimiter)
        try:
            names = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{place.name}: the line of the columns' names is broken: {error}") from error
        if names is None:
            return
        if len(set(names)) < len(names):
            raise InputError(f"{place.name}: two columns have the same name: {', '.join(names)}")
        table = Table.of(place, options, names)
        column = names.index(table.image)
        number = 0
        while True:
            begin, first_line = lines.offset, lines.count + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield table.broken(number, f"line {first_line}: {_explain(str(error))}")
                number += 1
                continue
            if row is None:
                return
            if not row:  # an empty line
                continue
            if len(row) > len(names):
                yield table.broken(number, f"line {first_line}: {len(row)} fields for {len(names)} columns")
            else:
                size = lines.offset - begin
                inline = {"kind": "csv", "path": place.path, "offset": begin, "size": size, "column": column}
                fields = dict(zip(names, row))  # noqa: B905  a row may end early
                yield table.row(number, fields, {**inline, "delimiter": delimiter})
            number += 1


class _Lines:
    """A file's lines as text, with a count of the bytes that were taken; bytes that are no UTF-8 are kept."""

    def __init__(self, file: BinaryIO) -> None:
        head = file.read(len(codecs.BOM_UTF8))
        self.offset = len(head) if head == codecs.BOM_UTF8 else 0
        self.count = 0
        file.seek(self.offset)
        self._file = file

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.offset += len(line)
        self.count += 1
        return line.decode("utf-8", "surrogateescape")


def _reader(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    # The limit is the process's; it is raised and never lowered, since a picture may be in a field.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _explain(error: str) -> str:
    if "unexpected end of data" in error:
        return "a quote is opened and never closed; the rest of the file is taken for this row"
    return error
