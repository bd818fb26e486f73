"""ReviewSession: one reviewer's work on a job; not for several threads at once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..readers import Reader
from ..report.report import find_state
from ..rules.text_rules import TextRules
from ..state.atomic_files import count_lines
from ..state.bounded_reading import read_json
from ..state.listing import Listing
from ..state.paths import INPUTS, JOB, JOURNAL, REVIEWS
from ..state.records import Item, JobError, Picture, Record, printable
from ..state.regular_files import own_exists, pin_directory
from ..state.reviews import Decision, ReviewLog, Verdict
from ..state.signature import is_listing_signed, require_signature
from .index import Filter, ReviewIndex
from .job_rules import job_rules

_MAX_CAPTION = 100_000  # characters
# Starts of the files that browsers and the server know; others are sent as PNG.
_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


class ConflictError(ValueError):
    """A caption changed since it was shown; the message says so."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a person wants to become of a record.

    Attributes:
        number: of the record.
        verdict: a value of `reviews.VERDICTS`.
        captions: the new captions; None for those that the record has.
        shown: the captions that the person saw; a change of others is refused. None does not check.
    """

    number: int
    verdict: Verdict
    captions: tuple[str, ...] | None = None
    shown: tuple[str, ...] | None = None


class ReviewSession:
    """Reviews the captions of a job, which may be running; only one session at a time can be open for a job.

    Args:
        out: output of the job, its state directory, or the folder that it captioned.

    Attributes:
        state: the job's state directory.
        changed: number of reviews that were made in this session.

    Raises:
        ReportError: there is no such job.
        JobError: this user did not run it here, or another session is open.
        ReviewError: the reviews are damaged.
        OSError: a file cannot be read or written.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.review.session import Change, ReviewSession
        >>> with ReviewSession("captions.jsonl") as session:  # doctest: +SKIP
        ...     session.change([Change(number=0, verdict="edited", captions=("A cat.",))])
    """

    def __init__(self, out: str | Path) -> None:
        self.state = find_state(out).absolute()
        require_signature(self.state)
        self._check_listing()
        self.changed = 0
        with ExitStack() as stack:
            stack.enter_context(pin_directory(self.state))
            try:
                self._log = stack.enter_context(closing(ReviewLog(self.state / REVIEWS)))
            except BlockingIOError:
                raise JobError(
                    f"another `share4v review` is open for this job ({self.state}): use that one, or end it"
                ) from None
            self._index = stack.enter_context(closing(ReviewIndex(self.state / JOURNAL, self._log.reviews)))
            self._index.refresh()
            self._stack = stack.pop_all()

    def __enter__(self) -> ReviewSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    @property
    def listing(self) -> str:
        """Identifies the job's list of inputs; the numbers of records are only valid with it."""
        return self._index.listing

    def find(self, wanted: Filter, start: int = 0, count: int | None = None) -> tuple[list[int], list[dict[str, Any]]]:
        """Return the numbers of all records that a filter lets through, and `count` of them from `start` on as rows."""
        self._index.refresh()
        numbers = self._index.find(wanted)
        return numbers, [self.row(number) for number in numbers[start : None if count is None else start + count]]

    def rows(self, numbers: Sequence[int], listing: str) -> list[dict[str, Any]]:
        """Return records as they are now; errors as in `change`."""
        self._check_is_listed(listing)
        return [self.row(number) for number in numbers]

    def row(self, number: int) -> dict[str, Any]:
        """Return a record as JSON values: number, listing, key, source, captions, names of texts, error, notes, verdict
        and size.

        Its texts are `printable`: bytes of a caption file that are not UTF-8 are shown as escapes.
        """
        return self._row(self._index.record(number))

    def status(self, reviewer: str | None = None) -> dict[str, Any]:
        """Return counts: records, inputs, one for each verdict, failed, and whether there is something to undo.

        Args:
            reviewer: whose actions could be undone; None for anybody's.
        """
        self._index.refresh()
        inputs = count_lines(self.state / INPUTS) if own_exists(self.state / INPUTS) else 0
        counts = {"records": len(self._index), "inputs": inputs, **self._index.counts()}
        return {**counts, "can_undo": self._log.reviews.last_action(reviewer) is not None}

    def change(self, changes: Sequence[Change], listing: str | None = None, reviewer: str = "") -> list[dict[str, Any]]:
        """Make changes as one action, which `undo` takes back, and return the changed rows; they are on disk then.

        Args:
            changes: what to change.
            listing: of the rows that were shown; None does not check that the numbers still mean the same inputs.
            reviewer: who makes them: any text that tells the reviewers of a job apart.

        Raises:
            IndexError: there is no such record.
            ConflictError: a caption is not the one that was shown, or the inputs were listed again; nothing was
                changed.
            ValueError: a caption is empty or too long, or there is nothing to accept.
            OSError: nothing was changed.
        """
        self._check_is_listed(listing)
        decisions = []
        for change in changes:
            record = self._index.record(change.number)
            decisions.append(Decision(record, change.verdict, self._captions(change, record)))
        return self._add(decisions, reviewer)

    def replace(
        self, numbers: Sequence[int], find: str, replacement: str, listing: str | None = None, reviewer: str = ""
    ) -> list[dict[str, Any]]:
        """Replace a text in the captions of records as one action, and return the rows that changed; errors as above.

        Raises:
            ValueError: the text to find is empty, or a caption would be empty or too long.
        """
        if not find:
            raise ValueError("the text to find is empty")
        self._check_is_listed(listing)
        changes, grown = [], len(replacement) - len(find)
        for number in numbers:
            captions = self._captions_of(self._index.record(number))
            if any(find in caption for caption in captions):
                for caption in captions:  # before the text is made, which could be as long as the memory
                    _check_length(len(caption) + grown * caption.count(find))
                replaced = tuple(caption.replace(find, replacement) for caption in captions)
                changes.append(Change(number=number, verdict="edited", captions=replaced))
        return self.change(changes, listing, reviewer) if changes else []

    def rules(self, text: str = "") -> TextRules:
        """Return the job's rules for captions.

        Args:
            text: name of a text, in a job with named texts.

        Raises:
            ValueError: the job's settings are missing or damaged.
        """
        return job_rules(read_json(self.state / JOB), text)

    def undo(self, reviewer: str | None = None) -> list[dict[str, Any]]:
        """Take back the last action that was not taken back, and return the rows that changed.

        Captions that somebody else has changed since stay as they are. So do the reviews of inputs that the job no
        longer has.

        Args:
            reviewer: whose last action; None for anybody's.

        Raises:
            ConflictError: somebody else has changed all of them since; the next call undoes the action before it.
            OSError: nothing was changed.
        """
        self._index.refresh()
        reviews = self._log.reviews
        action = reviews.last_action(reviewer)
        if action is None:
            return []
        undone = list(reviews.of_action(action))
        decisions, is_changed = [], False
        for review, record in zip(undone, self._index.records_of(undone), strict=True):
            if record is None:
                continue
            standing = reviews.standing(reviews.offset(record))
            if standing is None or standing.group != action.group:
                is_changed = True
                continue
            before = reviews.standing(review.previous)
            if before is None:
                decisions.append(Decision(record, "none", ()))
            else:  # with the captions that it was about: a rejection of others must not become one of the record's
                decisions.append(Decision(record, before.verdict, before.captions, before.generated))
        if decisions:
            return self._add(decisions, action.reviewer, undoes=action.group)
        del reviews.actions[action.group]
        if is_changed:
            raise ConflictError("it cannot be undone: the captions have been changed by somebody else since")
        return []

    def image(self, number: int, side: int | None = None, key: str | None = None) -> tuple[bytes, str]:
        """Return an input's image and its media type.

        Args:
            number: of the record.
            side: pixels of the longer side, at most; None for the input's own bytes.
            key: of the input that is meant; None does not check it.

        Raises:
            IndexError: there is no such input.
            ValueError, OSError: it can no longer be read.
        """
        return _encoded(self._picture(number, key), side)

    def _check_is_listed(self, listing: str | None) -> None:
        """Read what the job has written, and check that the inputs were not listed again meanwhile."""
        self._index.refresh()
        if listing is not None and listing != self._index.listing:
            raise ConflictError("the job has listed its inputs again since this was shown: load it again")

    def _picture(self, number: int, key: str | None) -> Picture:
        item: Item | None = next(Listing(self.state / INPUTS).items(number), None) if number >= 0 else None
        if item is None:
            raise IndexError(f"there is no input {number}")
        if key is not None and printable(item.key) != printable(key):
            raise IndexError(f"input {number} is no longer {key}")
        return self._reader.read(item)

    def _check_listing(self) -> None:
        """Check that a job of this user wrote the listing, whose locators can name any file."""
        digest = hashlib.sha256()
        count_lines(self.state / INPUTS, digest)
        if not is_listing_signed(self.state, digest.digest()):
            raise JobError(
                f"{self.state / INPUTS} was not written by a job of yours: run the job again, or with --adopt"
            )
        self._reader = Reader(downloads=None)

    def _row(self, record: Record) -> dict[str, Any]:
        review = self._log.reviews.get(record)
        applied = record if review is None else review.apply(record)
        is_rejected = review is not None and review.rejects(record)
        is_stale = review is not None and review.verdict == "rejected" and not is_rejected
        return {
            "number": record.number,
            "listing": self._index.listing,
            "key": printable(record.key),
            "source": printable(record.source),
            "captions": [printable(caption) for caption in self._captions_of(record)],
            "texts": list(record.texts),
            "error": None if is_rejected or applied.error is None else printable(applied.error),
            "notes": [printable(note) for note in record.notes],
            "verdict": "none" if review is None or is_stale else review.verdict,
            "width": record.width,
            "height": record.height,
        }

    def _captions_of(self, record: Record) -> tuple[str, ...]:
        """Return a record's captions as they were reviewed, also if they were rejected."""
        review = self._log.reviews.get(record)
        if review is None:
            return record.captions
        return review.captions if review.rejects(record) else review.apply(record).captions

    def _captions(self, change: Change, record: Record) -> tuple[str, ...]:
        present = self._captions_of(record)
        shown = tuple(map(printable, present))
        if change.shown is not None and tuple(map(printable, change.shown)) != shown:
            raise ConflictError("the caption has changed since it was shown: load it again")
        captions = present
        if change.captions is not None:  # of several, those that were not edited keep bytes that cannot be shown
            unchanged = dict(zip(shown, present, strict=True))
            captions = tuple(unchanged.get(one, one) for one in (caption.strip() for caption in change.captions))
        if change.verdict in ("accepted", "edited", "regenerated"):
            if not captions or not all(captions):
                raise ValueError("a caption must not be empty: reject it instead")
            for caption in captions:
                _check_length(len(caption))
        return captions

    def _add(self, decisions: Sequence[Decision], reviewer: str, undoes: int | None = None) -> list[dict[str, Any]]:
        self._log.add(decisions, undoes, reviewer)
        self.changed += len(decisions)
        for decision in decisions:
            self._index.update(decision.record.number)
        return [self._row(decision.record) for decision in decisions]


def _check_length(characters: int) -> None:
    if characters > _MAX_CAPTION:
        raise ValueError(f"a caption can have at most {_MAX_CAPTION:,} characters")


def _encoded(picture: Picture, side: int | None) -> tuple[bytes, str]:
    from mindone.models.share4v.processing.image_loading import load_image

    frame = picture.frames[0]
    if side is None and isinstance(frame, bytes):
        kind = next((kind for start, kind in _SIGNATURES if frame.startswith(start)), None)
        if frame[:4] == b"RIFF" and frame[8:12] == b"WEBP":
            kind = "image/webp"
        if kind is not None:
            return frame, kind
    image = load_image(frame)
    data = io.BytesIO()
    if side is None:
        image.save(data, "PNG")
        return data.getvalue(), "image/png"
    image.thumbnail((side, side))
    image.save(data, "WEBP", quality=80)
    return data.getvalue(), "image/webp"
