"""JSONL: one line per input, including failures; written to `<name>.partial` until the job is complete."""

from __future__ import annotations

from ..state.atomic_files import AppendOnlyFile, partial_path, publish
from ..state.records import Item, Record, portable_dumps
from ..state.regular_files import own_exists
from .base import Progress, Target
from .rows import output_row


class JsonlWriter:
    """Appends lines; after a crash it truncates the file to the last Progress and continues from there."""

    def __init__(self, target: Target) -> None:
        self._path, self._seconds = target.file(), target.options.seconds
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
        self._next = self.start

    def write(self, item: Item, record: Record) -> None:
        """Append a record's line."""
        if self._file is not None:
            self._file.append(portable_dumps(output_row(record, self._seconds)).encode() + b"\n")
            self._next += 1

    def flush(self) -> Progress:
        """Write the buffered lines to disk."""
        if self._file is None:
            return {"records": self.start, "finished": True}
        self._file.flush()
        return {"records": self._next, "bytes": self._file.size}

    def finish(self) -> Progress:
        """Rename the file to its final name."""
        if self._file is None:
            return self.flush()
        self._file.flush()
        self._file.close()
        publish(partial_path(self._path), self._path)
        return {"records": self._next, "finished": True}
