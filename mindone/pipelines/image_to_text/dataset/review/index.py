"""An index of a job's records for filters, in 30 bytes per record; it follows the journal of a running job."""

from __future__ import annotations

import hashlib
import os
import secrets
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..rules.retries import breaks_rules
from ..state.existing_captions import KEPT_EXISTING
from ..state.records import Record, record_from_line
from ..state.regular_files import open_own, own_exists
from ..state.reviews import VERDICTS, Reviews

_FAILED, _BREAKS_RULES = 1, 2
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
        self._identity: tuple[int, int] | None = None
        self._clear()

    def __len__(self) -> int:
        return len(self._offsets)

    def refresh(self) -> None:
        """Read records that the job has written since the last time; a new pass of the job starts a new journal."""
        if not own_exists(self._journal):
            self._clear()
            return
        with open_own(self._journal) as file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            if identity != self._identity or status.st_size < self._end:
                self._clear()
                self._identity = identity
            file.seek(self._end)
            for line in file:
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

    def record(self, number: int) -> Record:
        """Return a record as the job wrote it.

        Raises:
            IndexError: there is no such record.
        """
        if not 0 <= number < len(self._offsets):
            raise IndexError(f"there is no record {number}: the job has {len(self._offsets)}")
        with open_own(self._journal) as file:
            file.seek(self._offsets[number])
            return record_from_line(file.readline())

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
        with open_own(self._journal) as file:
            for number in numbers:
                file.seek(self._offsets[number])
                record = self._reviews.apply(record_from_line(file.readline()))
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
        self._end = 0
        self._offsets, self._words, self._digests = array("Q"), array("L"), array("Q")
        self._flags, self._verdicts = array("B"), array("B")


def _digest(words: list[list[str]]) -> int:
    text = "\n".join(" ".join(one) for one in words).casefold()
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
