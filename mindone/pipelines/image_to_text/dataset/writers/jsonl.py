"""JSONL and JSON: one object per input, including failures, on a line each or in one list."""

from __future__ import annotations

from ..state.records import Item, portable_dumps, printable
from .appended_file import AppendedFileWriter, Layout
from .finishing import OutputRecord
from .rows import output_row


class JsonlWriter(AppendedFileWriter):
    """One object on each line."""

    def row(self, item: Item, record: OutputRecord) -> str:
        """Return a record's object."""
        return portable_dumps(output_row(record, self._options))


class JsonWriter(AppendedFileWriter):
    """One list of objects, which also have the path of the input's file."""

    layout = Layout(start="[\n", between=",\n", end="\n]\n", empty="[]\n")

    def row(self, item: Item, record: OutputRecord) -> str:
        """Return a record's object."""
        path = None if item.path is None else printable(item.path)
        return portable_dumps({"path": path, **output_row(record, self._options)})
