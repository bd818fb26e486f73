"""FollowingWriter: keeps one output up to date with the journal, also after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ..state.atomic_files import atomic_write, count_lines
from ..state.bounded_reading import read_json
from ..state.journal import check_match, read_pairs
from ..state.listing import Listing
from ..state.paths import INPUTS, JOURNAL, REVIEWS
from ..state.records import Item, Record
from ..state.regular_files import own_exists
from ..state.reviews import Reviews
from .base import Progress, Target, Writer, WriterOptions
from .finishing import Wording
from .formats import WriterRow, writer_row

_FLUSH_INTERVAL = 4096  # records between flushes while an output catches up with the journal


def open_writer(name: str, out: str | None, options: WriterOptions, state: Path) -> FollowingWriter:
    """Open an output, new or left by an interrupted job; records that it lacks are read from the journal.

    Args:
        name: a key of WRITERS.
        out: file or directory; None writes captions beside the images.
        options: how it is written.
        state: the job's state directory, with the listing and, if the job was started before, the journal.

    Raises:
        ValueError: the format is unknown, or cannot be written to `out` or from these inputs.
        ImportError: a package that the format needs is not installed; the message names it.
        OSError: the output cannot be written.
    """
    return FollowingWriter(writer_row(name), out, options, state)


class FollowingWriter:
    """Passes each record with its input to a Writer, once and in order, and stores the writer's Progress.

    After an interruption, records that the writer has not on disk are read from the journal. The writer gets records as
    people reviewed them, in the job's wording; captions whose review or wording is newer are written again.

    Args:
        row: the format's row in WRITERS.
        out, options: as in `open_writer`.
        state: the job's state directory; the progress is stored there.

    Attributes:
        is_current: whether what was on disk when this was opened was complete and had all reviews.
    """

    def __init__(self, row: WriterRow, out: str | None, options: WriterOptions, state: Path) -> None:
        self._journal, self._listing = state / JOURNAL, Listing(state / INPUTS)
        self._progress_path = state / f"output-{row.name}.json"
        self._out = None if out is None else str(Path(out).absolute())
        self._row, self._path, self._options = row, out, options
        self._reviews = Reviews(state / REVIEWS)
        self._open()

    def _open(self) -> None:
        """Open the writer, which starts behind what is on disk, or from the first record if that is out of date."""
        stored = self._read_progress()
        # Progress beyond the end of the journal is from before the job was restarted from the beginning.
        is_valid = stored is not None and stored["seen"] <= self._journal_length()
        reviewed = int((stored or {}).get("reviews", 0))
        is_cut = reviewed > 0 and (stored or {}).get("reviews_mark") != self._reviews.mark(reviewed)
        if is_cut:  # somebody removed reviews, and later ones may be at the bytes of earlier ones
            reviewed = 0
        wording = self._options.wording
        wording.budgets()  # raises now, and not at the first caption, if a tokenizer was deleted
        wordings = tuple(map(Wording.from_json, (stored or {}).get("templates", (None,) if stored else ())))
        is_written = reviewed == self._reviews.end and all(one == wording for one in wordings)
        if (is_cut or not is_written) and not self._row.writes_sidecars:
            is_valid = False
        self.is_current = is_valid and is_written and bool((stored or {}).get("closed"))
        # Until every caption has the new wording, files beside images may have either.
        self._wordings = tuple(dict.fromkeys((*wordings, wording))) if self._row.writes_sidecars else (wording,)
        target = Target(
            row=self._row,
            out=self._path,
            options=self._options,
            listing=self._listing,
            journal=self._journal,
            progress=stored if is_valid else None,
            stale=None if is_valid else stored,
            reviews=self._reviews,
            reviewed=reviewed,
            wordings=wordings,
        )
        self._finisher = target.finisher
        self._writer = _writer_class(self._row)(target)
        self._next = self._writer.start
        self._items: Iterator[Item] | None = None
        self._is_finished = False
        self._stored: Progress | None = stored if is_valid else None
        # An output that is rewritten has all reviews so far; of files beside images, not all may have been checked yet.
        self._reviewed = reviewed if self._row.writes_sidecars else self._reviews.end
        if not is_valid or wordings != self._wordings:
            self._store(self._writer.flush())  # from here on, the files at `out` are known to be this job's

    @property
    def left_out(self) -> list[str]:
        """What could not be written, and why; at most 100 entries."""
        return self._writer.left_out

    def write(self, record: Record) -> None:
        """Write a record that is in the journal; one that the output already has is ignored."""
        self._catch_up(record.number)
        if record.number == self._next:
            self._write_next(record)

    def flush(self) -> None:
        """Write buffered records to disk, and then store the progress."""
        self._store(self._writer.flush())

    def finish(self) -> None:
        """Complete the output: all records are in the journal. Repeated, it adds the reviews made since."""
        if not self._is_finished:
            self._finish()
        while self._reviews.refresh():  # people reviewed captions while the job ran
            self._open()
            self._finish()

    def _finish(self) -> None:
        self._catch_up(self._journal_length())
        progress = self._writer.finish()
        self._reviewed = self._reviews.end
        self._wordings = (self._options.wording,)
        self._store({**progress, "closed": True})
        self._is_finished = True

    def _catch_up(self, end: int) -> None:
        if self._next < end:
            self._items = None
            for item, record in read_pairs(self._journal, self._listing, self._next, end):
                self._writer.write(item, self._finisher.finish(record))
                self._next += 1
                if self._next % _FLUSH_INTERVAL == 0:
                    self.flush()

    def _write_next(self, record: Record) -> None:
        if self._items is None:
            self._items = self._listing.items(self._next)
        item = check_match(next(self._items), record, self._journal)
        self._writer.write(item, self._finisher.finish(record))
        self._next += 1

    def _journal_length(self) -> int:
        return count_lines(self._journal) if own_exists(self._journal) else 0

    def _read_progress(self) -> Progress | None:
        if not own_exists(self._progress_path):
            return None
        progress: Progress = read_json(self._progress_path)
        return progress if progress.get("out") == self._out else None  # otherwise it describes files at another path

    def _store(self, progress: Progress) -> None:
        full: dict[str, Any] = {**progress, "seen": self._next, "out": self._out}
        if self._reviewed:
            full.update(reviews=self._reviewed, reviews_mark=self._reviews.mark(self._reviewed))
        if self._wordings != (Wording(),):
            full["templates"] = [wording.to_json() for wording in self._wordings]
        if full != self._stored:
            with atomic_write(self._progress_path) as file:
                file.write(json.dumps(full).encode())
            self._stored = full


def _writer_class(row: WriterRow) -> Callable[[Target], Writer]:
    module, _, attribute = row.writer.partition(":")
    found: Callable[[Target], Writer] = getattr(import_module(f".{module}", __package__), attribute)
    return found
