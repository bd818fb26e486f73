"""From a record of the journal to what outputs have: its captions as people reviewed them, in the job's template."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..prompts.caption_template import apply_template
from ..state.existing_captions import KEPT_EXISTING
from ..state.paths import PROGRESS
from ..state.records import Record
from ..state.regular_files import open_own
from ..state.reviews import Reviews

_FIELDS = tuple(field.name for field in fields(Record))


@dataclass(frozen=True)
class OutputRecord(Record):
    """A record as outputs have it.

    Attributes:
        recorded: the captions that the job made: not reviewed, and without the template; empty if it kept one.
    """

    recorded: tuple[str, ...] = ()


class Finisher:
    """Applies reviews, and then the template, to records.

    A caption that existed before the job is a finished text: it stays as it is, also if a person accepted or edited it
    in a review. Everything that the model wrote, also if a person edited it, is put into the template.

    Args:
        reviews: what people decided about the captions.
        template: the template, or None.
    """

    def __init__(self, reviews: Reviews, template: str | None) -> None:
        self.reviews, self.template = reviews, template

    def finish(self, record: Record) -> OutputRecord:
        """Return a record as outputs have it; one whose template cannot be filled in is a failure."""
        reviewed = self.reviews.apply(record)
        values = {name: getattr(reviewed, name) for name in _FIELDS}
        finished = OutputRecord(**values, recorded=() if KEPT_EXISTING in record.notes else record.captions)
        if self.template is None or not reviewed.captions or not self._is_generated(record):
            return finished
        try:
            return replace(finished, captions=in_template(self.template, record, reviewed.captions))
        except ValueError as error:
            return replace(finished, captions=(), error=str(error))

    def _is_generated(self, record: Record) -> bool:
        """Return whether the model wrote a record's captions, in the job or in a review."""
        if KEPT_EXISTING not in record.notes:
            return True
        return any(review.verdict == "regenerated" for review in self.reviews.history(record))


def in_template(template: str | None, record: Record, captions: Sequence[str]) -> tuple[str, ...]:
    """Return captions of a record in a template; None leaves them as they are.

    Raises:
        ValueError: the record lacks a value that the template needs.
    """
    return tuple(captions if template is None else (apply_template(template, record, one) for one in captions))


def texts_on_disk(
    record: Record, texts: Sequence[Sequence[str]], templates: Sequence[str | None]
) -> Iterator[tuple[str, ...]]:
    """Yield what outputs may have as captions of a record: each of some texts, in each of some templates."""
    for captions in texts:
        if captions:
            yield tuple(captions)
            for template in templates:
                with suppress(ValueError):
                    yield in_template(template, record, captions)


def written_texts(state: Path) -> Callable[[Record], Iterator[tuple[str, ...]]]:
    """Return what tells, for a record of a job, the captions that its caption file may have."""
    templates = _templates_on_disk(state)
    return lambda record: texts_on_disk(record, [record.captions], templates)


def _templates_on_disk(state: Path) -> tuple[str, ...]:
    """Return the templates with which a job has written captions, by the progress of its outputs."""
    found: dict[str, None] = {}
    for path in state.glob(PROGRESS):
        with suppress(ValueError, RecursionError), open_own(path) as file:
            stored = json.loads(file.read())
            templates = stored.get("templates") if isinstance(stored, dict) else None
            for one in templates if isinstance(templates, list) else ():
                if isinstance(one, str):
                    found[one] = None
    return tuple(found)
