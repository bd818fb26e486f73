"""JSONL: a line for every input, failures included; grows as `<name>.partial` until all of it is there."""

from __future__ import annotations

from ..state.atomic_files import AppendOnlyFile, partial_path, publish
from ..state.records import Item, Record, portable_dumps
from .base import Mark, Target
from .rows import output_row

NAME, SUFFIX = "captions.jsonl", ".jsonl"


class JsonlWriter:
    """Appends lines; after a crash it goes on behind the last mark."""

    def __init__(self, target: Target) -> None:
        self._path, self._seconds = target.file(SUFFIX, NAME), target.options.seconds
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.left_out: list[str] = []
        mark, partial = target.mark or {}, partial_path(self._path)
        self._file: AppendOnlyFile | None = None
        if mark.get("finished") and mark["records"] == len(target.listing) and self._path.exists():
            self.start = len(target.listing)
            return
        self._file = AppendOnlyFile(partial)
        is_usable = 0 < mark.get("bytes", 0) <= self._file.size and not mark.get("finished")
        self.start = mark["records"] if is_usable else 0
        self._file.truncate(mark["bytes"] if is_usable else 0)
        self._next = self.start

    def write(self, item: Item, record: Record) -> None:
        """Add a record's line."""
        if self._file is not None:
            self._file.append(portable_dumps(output_row(record, self._seconds)).encode() + b"\n")
            self._next += 1

    def flush(self) -> Mark:
        """Bring the lines to the disk."""
        if self._file is None:
            return {"records": self.start, "finished": True}
        self._file.flush()
        return {"records": self._next, "bytes": self._file.size}

    def finish(self) -> Mark:
        """Give the file its name."""
        if self._file is None:
            return self.flush()
        self._file.flush()
        self._file.close()
        publish(partial_path(self._path), self._path)
        return {"records": self._next, "finished": True}
