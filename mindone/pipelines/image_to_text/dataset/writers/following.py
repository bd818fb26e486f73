"""FollowingWriter: an output that follows the journal, wherever it was when its job was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from ..state.atomic_files import atomic_write, count_lines
from ..state.journal import check_match, read_pairs
from ..state.listing import Listing
from ..state.records import Item, Record
from .base import Mark, Target, Writer, WriterOptions

_OFTEN = 4096  # records after which an output that catches up notes how far it is


class FollowingWriter:
    """Hands records with their inputs to a writer, each once and in order, and keeps the writer's mark.

    What the writer lacks is read from the journal, however far that was when the output was last on the disk.

    Args:
        name: of the format.
        writer: makes the writer.
        out, options: as the caller gave them.
        state: directory with the job's inputs.jsonl and journal.jsonl; the mark is kept there.
    """

    def __init__(
        self, name: str, writer: Callable[[Target], Writer], out: str | None, options: WriterOptions, state: Path
    ) -> None:
        self._journal, self._listing = state / "journal.jsonl", Listing(state / "inputs.jsonl")
        self._mark_path = state / f"output-{name}.json"
        self._place = None if out is None else str(Path(out).absolute())
        before = self._read_mark()
        # A mark of more records than there are is from before the job was begun anew.
        is_valid = before is not None and before["seen"] <= self._recorded()
        target = Target(out, options, self._listing, before if is_valid else None, None if is_valid else before)
        self._writer = writer(target)
        self._next = self._writer.start
        self._items: Iterator[Item] | None = None
        self._saved: Mark | None = before if is_valid else None
        if not is_valid:
            self._save(self._writer.flush())  # from now on, what is there is this job's

    @property
    def left_out(self) -> list[str]:
        """What could not be written, and why; the first hundred."""
        return self._writer.left_out

    def write(self, record: Record) -> None:
        """Take a record that is in the journal; what the output has already changes nothing."""
        self._catch_up(record.number)
        if record.number == self._next:
            self._give(record)

    def flush(self) -> None:
        """Bring what was taken to the disk, and then note that it is there."""
        self._save(self._writer.flush())

    def finish(self) -> None:
        """Publish."""
        self._catch_up(self._recorded())
        self._save(self._writer.finish())

    def _catch_up(self, end: int) -> None:
        if self._next < end:
            self._items = None
            for item, record in read_pairs(self._journal, self._listing, self._next, end):
                self._writer.write(item, record)
                self._next += 1
                if self._next % _OFTEN == 0:
                    self.flush()

    def _give(self, record: Record) -> None:
        if self._items is None:
            self._items = self._listing.items(self._next)
        self._writer.write(check_match(next(self._items), record, self._journal), record)
        self._next += 1

    def _recorded(self) -> int:
        return count_lines(self._journal) if self._journal.exists() else 0

    def _read_mark(self) -> Mark | None:
        if not self._mark_path.exists():
            return None
        mark: Mark = json.loads(self._mark_path.read_text(encoding="utf-8"))
        return mark if mark.get("out") == self._place else None  # what it says is of another place

    def _save(self, mark: Mark) -> None:
        full = {**mark, "seen": self._next, "out": self._place}
        if full != self._saved:
            with atomic_write(self._mark_path) as file:
                file.write(json.dumps(full).encode())
            self._saved = full
