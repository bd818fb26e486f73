"""Outputs of one file that rows are appended to; it is written to `<name>.partial` until the job is complete."""

from __future__ import annotations

from typing import NamedTuple

from ..state.atomic_files import AppendOnlyFile, partial_path, publish
from ..state.records import Item
from ..state.regular_files import own_exists
from .base import Progress, Target
from .finishing import OutputRecord


class Layout(NamedTuple):
    """The text around the rows of a file.

    Attributes:
        start: before the first row.
        between: before every other row.
        after: after every row.
        end: after the last row.
        empty: the whole file if there are no rows.
    """

    start: str = ""
    between: str = ""
    after: str = ""
    end: str = ""
    empty: str = ""


class AppendedFileWriter:
    """Base class: appends rows; after a crash it truncates the file to the last Progress and continues from there."""

    layout = Layout(after="\n")

    def __init__(self, target: Target) -> None:
        self._path, self._options = target.file(), target.options
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.left_out: list[str] = []
        progress, partial = target.progress or {}, partial_path(self._path)
        self._file: AppendOnlyFile | None = None
        if progress.get("finished") and progress["records"] == len(target.listing) and own_exists(self._path):
            self.start = len(target.listing)
            return
        self._file = AppendOnlyFile(partial)
        is_usable = 0 < progress.get("bytes", 0) <= self._file.size and not progress.get("finished")
        self.start = progress["records"] if is_usable else 0
        self._file.truncate(progress["bytes"] if is_usable else 0)
        self._is_empty = not is_usable
        self._next = self.start

    def row(self, item: Item, record: OutputRecord) -> str | None:
        """Return the text of a record's row, or None if it has no row."""
        raise NotImplementedError

    def write(self, item: Item, record: OutputRecord) -> None:
        """Append a record's row."""
        if self._file is None:
            return
        row = self.row(item, record)
        if row is not None:
            before = self.layout.start if self._is_empty else self.layout.between
            self._file.append(f"{before}{row}{self.layout.after}".encode())
            self._is_empty = False
        self._next += 1

    def flush(self) -> Progress:
        """Write the buffered rows to disk."""
        if self._file is None:
            return {"records": self.start, "finished": True}
        self._file.flush()
        return {"records": self._next, "bytes": self._file.size}

    def finish(self) -> Progress:
        """Complete the file, and rename it to its final name."""
        if self._file is None:
            return self.flush()
        self._file.append((self.layout.empty if self._is_empty else self.layout.end).encode())
        self._file.flush()
        self._file.close()
        publish(partial_path(self._path), self._path)
        self._file = None
        self.start = self._next
        return self.flush()
