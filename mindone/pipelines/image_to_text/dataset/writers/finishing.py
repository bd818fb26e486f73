"""From a record of the journal to what outputs have: captions as people reviewed them, in the job's wording."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..prompts.caption_template import apply_template
from ..prompts.styles import asks_for_tags
from ..rules.retries import fault_error
from ..rules.token_budget import Fitted, TokenBudget, TokenBudgets
from ..state.bounded_reading import read_json
from ..state.existing_captions import KEPT_EXISTING
from ..state.paths import PROGRESS
from ..state.records import Record
from ..state.reviews import Reviews
from ..state.token_counts import TokenCounts

_FIELDS = tuple(field.name for field in fields(Record))


@dataclass(frozen=True)
class OutputRecord(Record):
    """A record as outputs have it.

    Attributes:
        recorded: the captions that the job made: not reviewed, and without the template; empty if it kept one.
        text_tokens: budget -> tokens of each caption, as the tokenizer of the budget counts them.
        uncut_tokens: the same before sentences were dropped.
    """

    recorded: tuple[str, ...] = ()
    text_tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    uncut_tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Wording:
    """What is done to a caption when it is written.

    Attributes:
        template: the template, or None.
        fit: token budgets, as `TokenBudget.parse` reads them.
        texts: names of the texts that have a wording of their own, with it.
        fails: whether an input fails if one of its captions does not fit into a budget.
    """

    template: str | None = None
    fit: tuple[str, ...] = ()
    texts: tuple[tuple[str, Wording], ...] = ()
    fails: bool = False

    def of(self, record: Record, count: int) -> list[Wording]:
        """Return the wording of each of the first captions of a record."""
        own, named = replace(self, texts=(), fails=False), dict(self.texts)
        return [named.get(record.texts[index], own) if index < len(record.texts) else own for index in range(count)]

    def to_json(self) -> Any:
        """Return a JSON value: that of the template if there is nothing else."""
        if not self.fit and not self.texts:
            return self.template
        texts = {"texts": {name: one.to_json() for name, one in self.texts}} if self.texts else {}
        fails = {"fails": True} if self.fails else {}
        return {"template": self.template, "fit": list(self.fit), **texts, **fails}

    @classmethod
    def from_json(cls, value: Any) -> Wording:
        """Read what `to_json` returned; anything else is taken for a caption as it is."""
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, dict) or not isinstance(value.get("fit"), list):
            return cls()
        template, texts = value.get("template"), value.get("texts")
        return cls(
            template if isinstance(template, str) else None,
            tuple(map(str, value["fit"])),
            tuple((name, cls.from_json(one)) for name, one in texts.items()) if isinstance(texts, dict) else (),
            value.get("fails") is True,
        )

    def budgets(self) -> TokenBudgets:
        """Return the budgets with their tokenizers, which must be on this machine; those of texts are checked, too.

        Raises:
            ValueError: one is not, or cannot be read.
        """
        for _, wording in self.texts:
            wording.budgets()
        return _budgets(self.fit)


@lru_cache(maxsize=16)
def _budgets(fit: tuple[str, ...]) -> TokenBudgets:
    return TokenBudgets(tuple(map(TokenBudget.parse, fit)), local_files_only=True)


class Finisher:
    """Applies reviews, and then the budgets and the template, to records.

    A caption that existed before the job is a finished text: it stays as it is, also if a person accepted or edited it
    in a review; its tokens are only counted. Everything that the model wrote, also if a person edited it, is put into
    the template, after dropping the sentences that would not fit into the budgets.

    Args:
        reviews: what people decided about the captions.
        wording: the template and the budgets.
    """

    def __init__(self, reviews: Reviews, wording: Wording) -> None:
        self.reviews, self.wording = reviews, wording

    def finish(self, record: Record) -> OutputRecord:
        """Return a record as outputs have it; one whose template cannot be filled in is a failure."""
        reviewed = self.reviews.apply(record)
        if record.texts and reviewed.captions:  # a review that generated one caption again has no others
            others = record.captions[len(reviewed.captions) :]
            reviewed = replace(reviewed, captions=(*reviewed.captions, *others))
        values = {name: getattr(reviewed, name) for name in _FIELDS}
        finished = OutputRecord(**values, recorded=() if KEPT_EXISTING in record.notes else record.captions)
        if self.wording == Wording() or not reviewed.captions:
            return finished
        wordings = self.wording.of(record, len(reviewed.captions))
        if not self._is_generated(record):
            return _with_counts(finished, wordings, list(map(_counted, wordings, reviewed.captions)))
        try:
            fitted = fitted_captions(self.wording, record, reviewed.captions)
            captions = _in_templates(wordings, record, [one.text for one in fitted])
        except ValueError as error:
            return replace(finished, captions=(), error=str(error))
        excess = _excess_notes(wordings, fitted) if self.wording.fails and not self._is_decided(record) else []
        if excess:
            return replace(finished, captions=(), rejected=record.captions, error=fault_error(excess))
        return _with_counts(replace(finished, captions=captions), wordings, fitted)

    def counting(self, counts: TokenCounts) -> Callable[[Record], OutputRecord]:
        """Return `finish`, which then adds the tokens of every record to `counts`."""

        def finish(record: Record) -> OutputRecord:
            finished = self.finish(record)
            counts.add(finished.text_tokens, finished.uncut_tokens)
            return finished

        return finish

    def _is_decided(self, record: Record) -> bool:
        """Return whether a person wrote a record's captions, or accepted them."""
        review = self.reviews.get(record)
        return review is not None and review.verdict in ("accepted", "edited")

    def _is_generated(self, record: Record) -> bool:
        """Return whether the model wrote a record's captions, in the job or in a review."""
        if KEPT_EXISTING not in record.notes:
            return True
        return any(review.verdict == "regenerated" for review in self.reviews.history(record))


def _counted(wording: Wording, caption: str) -> Fitted:
    tokens = wording.budgets().count(caption) if wording.fit else ()
    return Fitted(caption, tokens, tokens)


def _with_counts(record: OutputRecord, wordings: Sequence[Wording], fitted: Sequence[Fitted]) -> OutputRecord:
    """Return a record with the token counts of its captions, and notes about those that are too long."""
    tokens: dict[str, list[int]] = {}
    before: dict[str, list[int]] = {}
    for wording, one in zip(wordings, fitted, strict=True):
        for index, fit in enumerate(wording.fit):
            tokens.setdefault(fit, []).append(one.tokens[index])
            before.setdefault(fit, []).append(one.before[index])
    return replace(
        record,
        notes=(*record.notes, *_excess_notes(wordings, fitted)),
        text_tokens={fit: tuple(counts) for fit, counts in tokens.items()},
        uncut_tokens={fit: tuple(counts) for fit, counts in before.items()},
    )


def _excess_notes(wordings: Sequence[Wording], fitted: Sequence[Fitted]) -> list[str]:
    return [
        f"{wording.fit[index]}: {one.tokens[index]} tokens, although only one sentence is left"
        for wording, one in zip(wordings, fitted, strict=True)
        for index in one.excess
    ]


def excess_notes(wording: Wording, record: Record) -> list[str]:
    """Return what to note about captions of which not even one sentence fits into the budgets."""
    try:
        wordings = wording.of(record, len(record.captions))
        return _excess_notes(wordings, fitted_captions(wording, record, record.captions))
    except ValueError:  # the template cannot be filled in, which is another failure
        return []


def fitted_captions(wording: Wording, record: Record, captions: Sequence[str]) -> list[Fitted]:
    """Return captions of a record, without the template, cut so that they fit into the budgets within it.

    Raises:
        ValueError: the record lacks a value that the template needs, or a tokenizer is not on this machine.
    """
    wordings = wording.of(record, len(captions))
    prompts = record.prompts if len(record.prompts) == len(captions) else [""] * len(captions)
    texts = dict(zip(record.texts, captions, strict=False))  # before they are cut, which leaves room

    def fitted(one: Wording, caption: str, prompt: str) -> Fitted:
        def complete(text: str) -> str:
            return text if one.template is None else apply_template(one.template, record, text, texts)

        return one.budgets().fit(caption, complete, asks_for_tags(prompt)) if one.fit else Fitted(caption, (), ())

    return [fitted(*row) for row in zip(wordings, captions, prompts, strict=True)]


def worded(wording: Wording, record: Record, captions: Sequence[str]) -> tuple[str, ...]:
    """Return captions of a record as outputs have them; errors as in `fitted_captions`."""
    fitted = fitted_captions(wording, record, captions)
    return _in_templates(wording.of(record, len(captions)), record, [one.text for one in fitted])


def _in_templates(wordings: Sequence[Wording], record: Record, captions: Sequence[str]) -> tuple[str, ...]:
    """Return captions of a record in their templates, which may contain the record's texts by name.

    Raises:
        ValueError: the record lacks a value that a template needs.
    """
    texts = dict(zip(record.texts, captions, strict=False))
    templates = [wording.template for wording in wordings]
    return tuple(
        caption if template is None else apply_template(template, record, caption, texts)
        for template, caption in zip(templates, captions, strict=True)
    )


def texts_on_disk(
    record: Record, texts: Sequence[Sequence[str]], wordings: Sequence[Wording]
) -> Iterator[tuple[str, ...]]:
    """Yield what outputs may have as captions of a record: each of some texts, in each of some wordings."""
    for captions in texts:
        if captions:
            yield tuple(captions)
            for wording in wordings:
                with suppress(ValueError):
                    yield worded(wording, record, captions)


def written_texts(state: Path) -> Callable[[Record], Iterator[tuple[str, ...]]]:
    """Return what tells, for a record of a job, the captions that its caption file may have."""
    wordings = _wordings_on_disk(state)
    return lambda record: texts_on_disk(record, [record.captions], wordings)


def _wordings_on_disk(state: Path) -> tuple[Wording, ...]:
    """Return the wordings with which a job has written captions, by the progress of its outputs."""
    found: dict[Wording, None] = {}
    for path in state.glob(PROGRESS):
        with suppress(ValueError):
            stored = read_json(path)
            templates = stored.get("templates") if isinstance(stored, dict) else None
            for one in templates if isinstance(templates, list) else ():
                wording = Wording.from_json(one)
                if wording != Wording():
                    found[wording] = None
    return tuple(found)
