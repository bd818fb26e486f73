"""reviews.jsonl: what people decided about captions. It outlives every run of the job, and no run writes it.

A line is a review of one input; the last one of an input counts. Every edit is on disk before it is confirmed, and a
crash damages at most the last action, which readers ignore and the next writer removes. Reviews belong to an input by
its absolute path and key, so they still hold after the inputs were listed again, also if their paths are written
another way; see `input_names`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

from .atomic_files import AppendOnlyFile
from .bounded_reading import bounded_lines, parse_json
from .existing_captions import KEPT_EXISTING
from .records import Record, dumps
from .regular_files import open_own, own_exists
from .temp_table import TempTable

Verdict = Literal["none", "regenerated", "accepted", "edited", "rejected"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
REJECTED = "rejected in review"  # error of a record whose caption a person rejected
_MARKED_BYTES = 4096
_TEXTS, _NUMBERS, _OPTIONAL_NUMBERS = (
    ("key", "source", "place", "reviewer"),
    ("group", "number"),
    ("undoes", "previous"),
)  # types of the fields of a Review
_LISTS = ("captions", "generated", "names")
_NOTES = {"regenerated": "regenerated in review", "accepted": "accepted in review", "edited": "edited in review"}


class ReviewError(ValueError):
    """The file of reviews is damaged in a way that no crash causes."""


class _TornLineError(ValueError):
    """A line is no JSON object, as a crash may leave the last ones."""


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
        place: of the input.
        reviewer: who made it: a text that tells reviewers apart, or "".
        names: of the texts of the captions, in a job with named texts. A later run may have other texts.

    Raises:
        ValueError: the verdict is unknown, or a value has the wrong type.
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
    reviewer: str = ""
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, got {self.verdict!r}")
        for name in _LISTS:
            if not all(isinstance(caption, str) for caption in getattr(self, name)):
                raise ValueError(f"{name} must be texts, got {getattr(self, name)!r:.80}")
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r:.80}")
        for name in (*_NUMBERS, *_OPTIONAL_NUMBERS):
            value = getattr(self, name)
            if not (type(value) is int and value >= 0) and not (value is None and name in _OPTIONAL_NUMBERS):
                raise ValueError(f"{name} must be a number from 0, got {value!r:.80}")

    def apply(self, record: Record) -> Record:
        """Return the record with this review's captions, or as a failure if they were rejected."""
        if self.verdict == "none":
            return record
        if self.verdict == "rejected":
            return replace(record, captions=(), error=REJECTED) if self.rejects(record) else record
        captions = self._captions_for(record)
        if not captions:
            return record
        notes = tuple(note for note in record.notes if note != KEPT_EXISTING)
        return replace(record, captions=captions, error=None, notes=(*notes, _NOTES[self.verdict]))

    def _captions_for(self, record: Record) -> tuple[str, ...]:
        """Return the captions of a record with this review's: by name, if the texts are not those of the review."""
        if not self.names or self.names == record.texts:
            return self.captions
        if not record.texts:
            return self.captions[:1]
        own = dict(zip(self.names, self.captions, strict=False))
        found: list[str] = []
        for name, generated in zip_longest(record.texts, record.captions[: len(record.texts)]):
            caption = own.get(name, generated)
            if caption is None:  # the record is a failure, and nobody wrote this text
                break
            found.append(caption)
        return tuple(found) if own.keys() & {*record.texts} else ()

    def rejects(self, record: Record) -> bool:
        """Return whether this rejects a record; not one that a later run made with other captions."""
        return self.verdict == "rejected" and record.captions == self.generated

    def texts(self) -> tuple[tuple[str, ...], ...]:
        """Return the captions that an output may have had when this review was made."""
        return self.captions, self.generated


class Decision(NamedTuple):
    """A review that is to be added.

    Attributes:
        record: of the input.
        verdict, captions: as in a Review.
        generated: as in a Review; None for the captions of the record.
    """

    record: Record
    verdict: Verdict
    captions: Sequence[str]
    generated: Sequence[str] | None = None


class Action(NamedTuple):
    """An action that can be undone.

    Attributes:
        group: its number.
        offset: of its first review in the file.
        reviewer: who made it.
    """

    group: int
    offset: int
    reviewer: str


class Reviews:
    """The reviews of a job, looked up by input; memory does not grow with their number, only with that of actions.

    Args:
        path: of the file; it need not exist.

    Attributes:
        end: bytes of the file that were read.
        actions: those that can be undone, by their number, oldest first.

    Raises:
        ReviewError: a line is no review, and no crash left it so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = TempTable("offset INTEGER")
        self.end = 0
        self.actions: dict[int, Action] = {}
        self.last_group = 0
        self.refresh()

    def refresh(self) -> bool:
        """Read what was added since the last time, and return whether anything was."""
        if not own_exists(self._path):
            return False
        before = self.end
        with open_own(self._path) as file:
            file.seek(self.end)
            for line in bounded_lines(file, self._path):
                if not line.endswith(b"\n"):  # being written, or torn by a crash
                    break
                try:
                    review = self._parsed(line, self.end)
                except ReviewError as error:
                    if isinstance(error.__cause__, _TornLineError) and self._is_last_action(file):
                        break
                    raise
                self._note(review, self.end)
                self.end += len(line)
        return self.end > before

    def offset(self, record: Record) -> int | None:
        """Return the offset of the last review of a record's input, or None."""
        for name in input_names(record):
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
        yield from self._chain(self.offset(record))

    def standing(self, offset: int | None) -> Review | None:
        """Return the review that holds after the one at an offset, which may undo others; None if there is none."""
        chain = self._chain(offset)
        for review in chain:
            if review.undoes is None:
                return review
            # What was undone is the nearest review of that action; the state before it holds again.
            next((undone for undone in chain if undone.group == review.undoes), None)
        return None

    def last_action(self, reviewer: str | None = None) -> Action | None:
        """Return the last action of a reviewer that was not undone, or of anybody; None if there is none."""
        actions = reversed(self.actions.values())
        return next((one for one in actions if reviewer is None or one.reviewer == reviewer), None)

    def of_action(self, action: Action) -> Iterator[Review]:
        """Yield the reviews of an action, which are one behind the other in the file."""
        with open_own(self._path) as file:
            offset = action.offset
            file.seek(offset)
            for line in bounded_lines(file, self._path):
                if offset >= self.end:
                    return
                review = self._parsed(line, offset)
                if review.group != action.group:
                    return
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

    def _chain(self, offset: int | None) -> Iterator[Review]:
        """Yield a review and those of the same input before it."""
        while offset is not None:
            review = self.at(offset)
            yield review
            offset = review.previous

    def _note(self, review: Review, offset: int) -> None:
        for name in input_names(review):
            self._offsets.put(name, offset)
        if review.undoes is not None:
            self.actions.pop(review.undoes, None)
        else:
            self.actions.setdefault(review.group, Action(review.group, offset, review.reviewer))
        self.last_group = max(self.last_group, review.group)

    def _is_last_action(self, rest: BinaryIO) -> bool:
        """Return whether what follows a damaged line is of one action: the last one, which a power failure cut short.

        Its lines may reach the disk in any order, and it was not confirmed.
        """
        groups = set()
        for line in bounded_lines(rest, self._path):
            with suppress(ValueError):
                groups.add(review_from_line(line).group)
        return len(groups) <= 1 and groups <= {self.last_group, self.last_group + 1}

    def _parsed(self, line: bytes, offset: int) -> Review:
        try:
            review = review_from_line(line)
            if review.previous is not None and review.previous >= offset:  # else following it might never end
                raise ValueError(f"previous must be the offset of an earlier line, got {review.previous}")
            return review
        except ValueError as error:
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

    def add(self, decisions: Sequence[Decision], undoes: int | None = None, reviewer: str = "") -> tuple[Review, ...]:
        """Add the reviews of one action; they are on disk when this returns.

        Args:
            decisions: one for each input.
            undoes: the action that this one undoes.
            reviewer: who makes it.

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
                generated=record.captions if generated is None else tuple(generated),
                group=group,
                number=record.number,
                undoes=undoes,
                previous=self.reviews.offset(record),
                place=record.place,
                reviewer=reviewer,
                names=record.texts,
            )
            for record, verdict, captions, generated in decisions
        )
        try:  # one piece, so that an action is on disk as a whole or not at all
            self._file.append("".join(map(_to_line, added)).encode())
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


def _to_line(review: Review) -> str:
    values = vars(review)
    return dumps({name: value for name, value in values.items() if value or name != "names"}) + "\n"


def review_from_line(line: bytes) -> Review:
    """Read a line of the file; unknown fields, which a newer version may add, are ignored.

    Raises:
        ValueError: it is no review.
    """
    try:
        values: Any = parse_json(line)
    except ValueError as error:
        raise _TornLineError(str(error)) from error
    if not isinstance(values, dict):
        raise _TornLineError(f"expected an object, got {line[:80]!r}")
    known = {name: values[name] for name in Review.__dataclass_fields__ if name in values}
    for name in _LISTS:
        if not isinstance(known.setdefault(name, []), list):
            raise ValueError(f"{name} must be a list, got {known[name]!r:.80}")
        known[name] = tuple(known[name])
    missing = [name for name in ("key", "source", "verdict", "group", "number") if name not in known]
    if missing:
        raise ValueError(f"a review has no {', '.join(missing)}")
    return Review(**known)


def input_names(one: Record | Review) -> list[bytes]:
    """Return the names under which the reviews of an input are found, the most exact one first.

    A moved job has the sources of before at other places. A file's key changes if another file, whose name differs in
    the extension, is added beside it: the place alone counts then. The place of a table's row has the key, because
    several rows may have the same image; URLs are shown without what may be secret, so they need the key.
    """
    names = [f"{one.key}\0{one.place or one.source}", f"{one.key}\0{one.source}"]
    if one.place and "://" not in one.place:
        names.append(f"\0{one.place}")
    return [name.encode("utf-8", "surrogatepass") for name in dict.fromkeys(names)]
