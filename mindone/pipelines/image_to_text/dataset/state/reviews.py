"""reviews.jsonl: what people decided about captions. It outlives every run of the job, and no run writes it.

A line is a review of one input; the last one of an input counts. Every edit is on disk before it is confirmed, and a
crash damages at most the last action, which readers ignore and the next writer removes. Reviews belong to an input by
its absolute path and key, so they still hold after the inputs were listed again, also if their paths are written
another way; see `_names`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from .atomic_files import AppendOnlyFile
from .existing_captions import KEPT_EXISTING
from .records import Record, dumps
from .regular_files import open_own, own_exists
from .temp_table import TempTable

Verdict = Literal["none", "regenerated", "accepted", "edited", "rejected"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
REJECTED = "rejected in review"  # error of a record whose caption a person rejected
_MARKED_BYTES = 4096
_NOTES = {"regenerated": "regenerated in review", "accepted": "accepted in review", "edited": "edited in review"}


class ReviewError(ValueError):
    """The file of reviews is damaged in a way that no crash causes."""


@dataclass(frozen=True)
class Review:
    """What a person decided about an input.

    Attributes:
        key, source, place: of the input.
        verdict: "edited", "accepted" or "regenerated" (the captions count, whatever a later run generates), "rejected"
            (these captions do not count; others that a later run generates do), or "none" (an earlier one was undone).
        captions: the texts that it is about.
        generated: the captions that the job's record had then. A rejection holds while the record has these.
        group: number of the action that made it; an action may change many inputs.
        number: of the input when it was reviewed.
        undoes: number of the action that it undoes, or None.
        previous: offset of the input's previous review in the file, or None.

    Raises:
        ValueError: the verdict is unknown, or the captions are no texts.
    """

    key: str
    source: str
    verdict: Verdict
    captions: tuple[str, ...]
    generated: tuple[str, ...]
    group: int
    number: int
    undoes: int | None = None
    previous: int | None = None
    place: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, got {self.verdict!r}")
        if not all(isinstance(caption, str) for caption in (*self.captions, *self.generated)):
            raise ValueError("captions must be texts")

    def apply(self, record: Record) -> Record:
        """Return the record with this review's captions, or as a failure if they were rejected."""
        if self.verdict == "none":
            return record
        if self.verdict == "rejected":
            return replace(record, captions=(), error=REJECTED) if self.rejects(record) else record
        notes = tuple(note for note in record.notes if note != KEPT_EXISTING)
        return replace(record, captions=self.captions, error=None, notes=(*notes, _NOTES[self.verdict]))

    def rejects(self, record: Record) -> bool:
        """Return whether this rejects a record; not one that a later run made with other captions."""
        return self.verdict == "rejected" and record.captions == self.generated

    def texts(self) -> tuple[tuple[str, ...], ...]:
        """Return the captions that an output may have had when this review was made."""
        return self.captions, self.generated


class Reviews:
    """The reviews of a job, looked up by input; memory does not grow with their number.

    Args:
        path: of the file; it need not exist.

    Attributes:
        end: bytes of the file that were read.
        groups: actions that can be undone, oldest first.

    Raises:
        ReviewError: a line that is not the last one is no review.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = TempTable("offset INTEGER")
        self.end = 0
        self.groups: list[int] = []
        self.last_group = 0
        self.refresh()

    def refresh(self) -> bool:
        """Read what was added since the last time, and return whether anything was."""
        if not own_exists(self._path):
            return False
        before = self.end
        with open_own(self._path) as file:
            file.seek(self.end)
            for line in file:
                if not line.endswith(b"\n"):  # being written, or torn by a crash
                    break
                try:
                    review = self._parsed(line, self.end)
                except ReviewError:
                    if self._is_last_action(file):
                        break
                    raise
                self._note(review, self.end)
                self.end += len(line)
        return self.end > before

    def offset(self, record: Record) -> int | None:
        """Return the offset of the last review of a record's input, or None."""
        for name in _names(record.key, record.source, record.place):
            row = self._offsets.get(name)
            if row is not None:
                return int(row[0])
        return None

    def get(self, record: Record) -> Review | None:
        """Return the last review of a record's input, or None."""
        offset = self.offset(record)
        return None if offset is None else self.at(offset)

    def at(self, offset: int) -> Review:
        """Return the review at an offset of the file."""
        with open_own(self._path) as file:
            file.seek(offset)
            return self._parsed(file.readline(), offset)

    def apply(self, record: Record) -> Record:
        """Return a record as its review wants it."""
        review = self.get(record)
        return record if review is None else review.apply(record)

    def history(self, record: Record) -> Iterator[Review]:
        """Yield the reviews of a record's input, the last one first."""
        offset = self.offset(record)
        while offset is not None:
            review = self.at(offset)
            yield review
            offset = review.previous

    def of_group(self, group: int) -> Iterator[Review]:
        """Yield the reviews of an action."""
        if not own_exists(self._path):
            return
        with open_own(self._path) as file:
            offset = 0
            for line in file:
                if offset >= self.end:
                    return
                review = self._parsed(line, offset)
                if review.group == group:
                    yield review
                offset += len(line)

    def mark(self, end: int) -> str | None:
        """Return a digest of what is before a byte of the file; None if less was read.

        A number of bytes alone would not tell that lines were removed and others added.
        """
        if not 0 < end <= self.end:
            return None
        with open_own(self._path) as file:
            file.seek(max(0, end - _MARKED_BYTES))
            return hashlib.blake2b(file.read(min(end, _MARKED_BYTES)), digest_size=8).hexdigest()

    def close(self) -> None:
        """Delete the temporary table."""
        self._offsets.close()

    def _note(self, review: Review, offset: int) -> None:
        for name in _names(review.key, review.source, review.place):
            self._offsets.put(name, offset)
        if review.undoes is not None:
            if review.undoes in self.groups:
                self.groups.remove(review.undoes)
        elif not self.groups or self.groups[-1] != review.group:
            self.groups.append(review.group)
        self.last_group = max(self.last_group, review.group)

    def _is_last_action(self, rest: BinaryIO) -> bool:
        """Return whether what follows a damaged line is of one action: the last one, which a power failure cut short.

        Its lines may reach the disk in any order, and it was not confirmed.
        """
        groups = set()
        for line in rest:
            with suppress(ValueError, TypeError, RecursionError):
                groups.add(review_from_line(line).group)
        return len(groups) <= 1 and groups <= {self.last_group, self.last_group + 1}

    def _parsed(self, line: bytes, offset: int) -> Review:
        try:
            return review_from_line(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise ReviewError(
                f"{self._path}, byte {offset}: {error}; the file was edited or damaged: remove the lines from there to "
                "its end, which loses the reviews in them"
            ) from error


class ReviewLog:
    """Adds reviews to the file; only one process at a time can have it open.

    Opening it removes a line that a crash left incomplete.

    Args:
        path: of the file; created if it does not exist.

    Attributes:
        reviews: what the file has.

    Raises:
        OSError: another process has it open, or it cannot be written.
        ReviewError: as for Reviews.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendOnlyFile(path)
        try:
            self.reviews = Reviews(path)
            self._file.truncate(self.reviews.end)
        except BaseException:
            self._file.close()
            raise

    def add(
        self, changes: Sequence[tuple[Record, Verdict, Sequence[str]]], undoes: int | None = None
    ) -> tuple[Review, ...]:
        """Add the reviews of one action; they are on disk when this returns.

        Args:
            changes: records, each with the verdict and the captions that it is about.
            undoes: the action that this one undoes.

        Raises:
            OSError: for example because the disk is full; nothing was added.
        """
        group = self.reviews.last_group + 1
        added = tuple(
            Review(
                key=record.key,
                source=record.source,
                verdict=verdict,
                captions=tuple(captions),
                generated=record.captions,
                group=group,
                number=record.number,
                undoes=undoes,
                previous=self.reviews.offset(record),
                place=record.place,
            )
            for record, verdict, captions in changes
        )
        try:  # one piece, so that an action is on disk as a whole or not at all
            self._file.append("".join(dumps(vars(review)) + "\n" for review in added).encode())
            self._file.flush()
        except OSError:
            self._file.discard()  # the person was told that nothing was added: no later action may add it
            raise
        self.reviews.refresh()
        return added

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self.reviews.close()


def review_from_line(line: bytes) -> Review:
    """Read a line of the file; unknown fields, which a newer version may add, are ignored.

    Raises:
        ValueError, TypeError: it is no review.
    """
    values: Any = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, got {line[:80]!r}")
    known = {name: values[name] for name in Review.__dataclass_fields__ if name in values}
    return Review(**{**known, **{name: tuple(known.get(name, ())) for name in ("captions", "generated")}})


def _names(key: str, source: str, place: str) -> list[bytes]:
    """Return the names under which an input's review is found, the most exact one first.

    A moved job has the sources of before at other places. A file's key changes if another file, whose name differs in
    the extension, is added beside it: the place alone counts then. The place of a table's row has the key, because
    several rows may have the same image; URLs are shown without what may be secret, so they need the key.
    """
    names = [f"{key}\0{place or source}", f"{key}\0{source}"]
    if place and "://" not in place:
        names.append(f"\0{place}")
    return [name.encode("utf-8", "surrogatepass") for name in dict.fromkeys(names)]
