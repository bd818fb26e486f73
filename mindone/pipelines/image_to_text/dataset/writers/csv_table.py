"""CSV: one row per input, including failures."""

from __future__ import annotations

import csv
import io
from typing import Any

from ..state.records import Item, portable_dumps, printable
from .appended_file import AppendedFileWriter, Layout
from .base import Target
from .finishing import OutputRecord
from .rows import output_row


class CsvWriter(AppendedFileWriter):
    """RFC 4180 in UTF-8: a header, CRLF between rows, quotes where they are needed.

    The columns are those of Parquet, after the path of the input's file. A cell of several values is JSON text, and one
    without a value is empty.
    """

    def __init__(self, target: Target) -> None:
        header = _line(["path", *output_row(OutputRecord(0, "", ""), target.options)])
        self.layout = Layout(start=header, empty=header)
        super().__init__(target)

    def row(self, item: Item, record: OutputRecord) -> str:
        """Return a record's line."""
        return _line([item.path, *map(_cell, output_row(record, self._options).values())])


def _cell(value: Any) -> Any:
    return portable_dumps(value) if isinstance(value, (list, dict)) else value


def _line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(printable(cell) if isinstance(cell, str) else cell for cell in cells)
    return text.getvalue()
