"""An index of a job's records for filters, in 30 bytes per record; it follows the journal of a running job."""

from __future__ import annotations

import hashlib
import os
import secrets
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..rules.retries import breaks_rules
from ..state.bounded_reading import bounded_lines
from ..state.existing_captions import KEPT_EXISTING
from ..state.records import Record, record_from_line
from ..state.regular_files import open_own
from ..state.reviews import VERDICTS, Review, Reviews, input_names

_FAILED, _BREAKS_RULES = 1, 2
_COMPARED_BYTES = 4096  # before the end of what was read of the journal
SORTS = ("number", "shortest", "longest")


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which records to show; every condition that is given must hold.

    Attributes:
        verdicts: values of `reviews.VERDICTS`; empty for all.
        failed: without captions, for another reason than a rejection.
        breaks_rules: with captions that break a rule of the job.
        duplicates: with captions that another input has, too.
        min_words, max_words: words of all captions of an input.
        search: text in the captions or the source, in any case.
        sort: "number" (the order of the inputs), "shortest" or "longest".

    Raises:
        ValueError: a value is unknown.
    """

    verdicts: tuple[str, ...] = ()
    failed: bool = False
    breaks_rules: bool = False
    duplicates: bool = False
    min_words: int | None = None
    max_words: int | None = None
    search: str = ""
    sort: str = "number"

    def __post_init__(self) -> None:
        for verdict in self.verdicts:
            if verdict not in VERDICTS:
                raise ValueError(f"verdicts must be among {', '.join(VERDICTS)}, got {verdict!r}")
        if self.sort not in SORTS:
            raise ValueError(f"sort must be one of {', '.join(SORTS)}, got {self.sort!r}")


class ReviewIndex:
    """Finds records by what their captions are, as people reviewed them.

    Args:
        journal: path of the job's journal.
        reviews: of the job.

    Attributes:
        listing: a text that changes when the inputs may have other numbers.
    """

    def __init__(self, journal: Path, reviews: Reviews) -> None:
        self._journal, self._reviews = journal, reviews
        # Stays open, so that no other file gets its inode number, and offsets are always of the file that was read.
        self._file: BinaryIO | None = None
        self._clear()

    def __len__(self) -> int:
        return len(self._offsets)

    def close(self) -> None:
        """Close the journal."""
        self._clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def refresh(self) -> None:
        """Read records that the job has written since the last time; a new pass of the job starts a new journal."""
        file = self._reopened()
        if file is None:
            return
        file.seek(self._end)
        for line in bounded_lines(file, self._journal):
            if not line.endswith(b"\n"):
                break
            try:
                record = record_from_line(line)
            except (ValueError, TypeError):  # what a crash left at the end; the job cuts it off
                break
            self._offsets.append(self._end)
            self._words.append(0)
            self._flags.append(0)
            self._verdicts.append(0)
            self._digests.append(0)
            self._set(len(self._offsets) - 1, record)
            self._end += len(line)
        self._last_bytes = self._before_end(file)

    def _reopened(self) -> BinaryIO | None:
        """Return the journal, at whose path may be another file by now; what was read of an earlier one is dropped."""
        try:
            current = open_own(self._journal)
        except FileNotFoundError:
            self.close()
            return None
        if self._file is not None:
            is_same = os.path.sameopenfile(self._file.fileno(), current.fileno())
            if is_same and self._before_end(current) == self._last_bytes:  # not cut or rewritten, either
                current.close()
                return self._file
            self.close()
        self._file = current
        return current

    def _before_end(self, file: BinaryIO) -> bytes:
        file.seek(max(0, self._end - _COMPARED_BYTES))
        return file.read(min(self._end, _COMPARED_BYTES))

    def record(self, number: int) -> Record:
        """Return a record as the job wrote it.

        Raises:
            IndexError: there is no such record.
        """
        if self._file is None or not 0 <= number < len(self._offsets):
            raise IndexError(f"there is no record {number}: the job has {len(self._offsets)}")
        self._file.seek(self._offsets[number])
        return record_from_line(self._file.readline())

    def records_of(self, reviews: Sequence[Review]) -> list[Record | None]:
        """Return the record of each review's input, which may have another number since the inputs were listed again.

        The journal is read once at most, however many reviews there are.
        """
        found: list[Record | None] = []
        for review in reviews:
            record = self.record(review.number) if review.number < len(self) else None
            found.append(record if record is not None and input_names(record)[0] == input_names(review)[0] else None)
        wanted: dict[bytes, list[tuple[int, int]]] = {}  # name -> how exact it is, and index of the review
        for index, review in enumerate(reviews):
            if found[index] is None:
                for rank, name in enumerate(input_names(review)):
                    wanted.setdefault(name, []).append((rank, index))
        ranks: dict[int, int] = {}
        for number in range(len(self)) if wanted else ():
            record = self.record(number)
            for name in input_names(record):
                for rank, index in wanted.get(name, ()):
                    if rank < ranks.get(index, len(wanted)):
                        found[index], ranks[index] = record, rank
        return found

    def update(self, number: int) -> None:
        """Take over a new review of a record."""
        self._set(number, self.record(number))

    def counts(self) -> dict[str, int]:
        """Return how many records have each verdict, and how many failed."""
        found = Counter(self._verdicts)
        failed = sum(1 for flags in self._flags if flags & _FAILED)
        return {**{verdict: found[code] for code, verdict in enumerate(VERDICTS)}, "failed": failed}

    def find(self, wanted: Filter) -> list[int]:
        """Return the numbers of the records that a filter lets through, sorted."""
        text = wanted.search.casefold()
        matching = self._matching(wanted)
        numbers = list(self._with_text(matching, text) if text and len(self) else matching)
        if wanted.sort != "number":
            numbers.sort(key=lambda number: self._words[number], reverse=wanted.sort == "longest")
        return numbers

    def _matching(self, wanted: Filter) -> Iterator[int]:
        codes = {VERDICTS.index(verdict) for verdict in wanted.verdicts}
        copies = Counter(self._digests) if wanted.duplicates else None
        low, high = wanted.min_words, wanted.max_words
        for number, flags in enumerate(self._flags):
            if codes and self._verdicts[number] not in codes:
                continue
            if (wanted.failed and not flags & _FAILED) or (wanted.breaks_rules and not flags & _BREAKS_RULES):
                continue
            if (low is not None and self._words[number] < low) or (high is not None and self._words[number] > high):
                continue
            if copies is not None and not (self._digests[number] and copies[self._digests[number]] > 1):
                continue
            yield number

    def _with_text(self, numbers: Iterable[int], text: str) -> Iterator[int]:
        """Yield the records with a text in their captions or source; they are read in the order of the file."""
        for number in numbers:
            record = self._reviews.apply(self.record(number))
            if any(text in one.casefold() for one in (*record.captions, record.source)):
                yield number

    def _set(self, number: int, record: Record) -> None:
        review = self._reviews.get(record)
        applied = record if review is None else review.apply(record)
        is_rejected = review is not None and review.rejects(record)
        stale_rejection = review is not None and review.verdict == "rejected" and not is_rejected
        verdict = "none" if review is None or stale_rejection else review.verdict
        self._verdicts[number] = VERDICTS.index(verdict)
        is_made = KEPT_EXISTING not in record.notes and verdict in ("none", "rejected")
        self._flags[number] = (
            _FAILED * (applied.error is not None and not is_rejected)
            + _BREAKS_RULES * (record.error is None and is_made and breaks_rules(record.notes))
        )  # fmt: skip
        captions = review.captions if review is not None and is_rejected else applied.captions
        words = [caption.split() for caption in captions]
        self._words[number] = sum(map(len, words))
        self._digests[number] = _digest(words) if any(words) else 0

    def _clear(self) -> None:
        self.listing = secrets.token_hex(8)
        self._end, self._last_bytes = 0, b""
        self._offsets: array[int] = array("Q")
        self._words: array[int] = array("L")
        self._digests: array[int] = array("Q")
        self._flags: array[int] = array("B")
        self._verdicts: array[int] = array("B")


def _digest(words: list[list[str]]) -> int:
    text = "\n".join(" ".join(one) for one in words).casefold()
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
