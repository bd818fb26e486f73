"""Limits that make an audit a gate: the measures, how a limit is written, and which are exceeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mindone.models.share4v.suggestions import unknown

from .audit import TERM_KINDS, CaptionAudit
from .trigger_word import TriggerCounts

_DEFAULT = "term"
_MAX_SHOWN = 5
_QUOTED = ("term", "opening", "ending", "near-misses")  # measures that find words of the captions


@dataclass(frozen=True)
class Limit:
    """A share of captions that a measure must not exceed.

    Attributes:
        measure: a key of MEASURES.
        share: a fraction of 1.
    """

    measure: str
    share: float


Found = list[tuple[str, int]]  # what was found, and in how many captions


def _terms(audit: CaptionAudit) -> Found:
    own = set(audit.trigger.words) if audit.trigger else set()
    found = [entry for kind in TERM_KINDS for entry in audit.top(kind, _MAX_SHOWN + 10 * len(own))]
    counts = {term: count for term, count in found if own.isdisjoint(term.split())}
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _near_misses(audit: CaptionAudit) -> Found:
    return [(miss.term, miss.captions) for miss in _trigger(audit).near_misses(audit.words, audit.pairs)]


def _trigger(audit: CaptionAudit) -> TriggerCounts:
    if audit.trigger is None:
        raise ValueError("a limit for 'no-trigger' or 'near-misses' needs the trigger word: add trigger (--trigger)")
    return audit.trigger


def _without_trigger(audit: CaptionAudit) -> Found:
    trigger = _trigger(audit)
    return [(f"captions without {trigger.trigger!r}", audit.captions - trigger.present)]


def _over_budget(audit: CaptionAudit) -> Found:
    if not audit.tokens.budgets and audit.captions:
        raise ValueError("a limit for 'over-budget' needs a tokenizer and a number of tokens: add budgets (--fit)")
    found = [(f"captions over {budget}", counts.over) for budget, counts in audit.tokens.budgets.items()]
    return sorted(found, key=lambda entry: -entry[1])


# Measure -> what it is, and the function that finds it, the most frequent first.
MEASURES: dict[str, tuple[str, Callable[[CaptionAudit], Found]]] = {
    "term": ("any word, phrase or tag but the trigger and function words", _terms),
    "opening": ("the first three words", lambda audit: audit.openings.most_common(_MAX_SHOWN)),
    "ending": ("the last three words", lambda audit: audit.endings.most_common(_MAX_SHOWN)),
    "near-duplicates": (
        "captions that nearly equal an earlier one",
        lambda audit: [("near-duplicate captions", audit.near_duplicates.captions)],
    ),
    "identical": (
        "captions with the words of an earlier one",
        lambda audit: [("identical captions", audit.near_duplicates.identical)],
    ),
    "no-trigger": ("captions without the trigger", _without_trigger),
    "near-misses": ("captions with a word that looks like the trigger misspelt", _near_misses),
    "over-budget": ("captions with more tokens than a budget", _over_budget),
    "empty": ("captions without words", lambda audit: [("empty captions", audit.empty)]),
    "missing": ("rows and files without a caption", lambda audit: [("missing captions", audit.missing)]),
}


def parse_limit(text: str) -> Limit:
    """Read a limit: "60%", "0.6", or with a measure, "opening=30%".

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_limit("60%"), parse_limit("no-trigger=0")
        (Limit(measure='term', share=0.6), Limit(measure='no-trigger', share=0.0))
    """
    measure, _, number = text.rpartition("=")
    measure = measure.strip() or _DEFAULT
    if measure not in MEASURES:
        raise ValueError(unknown("measure", measure, MEASURES))
    try:
        share = float(number.strip().removesuffix("%")) / (100 if number.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(
            f"{text!r} is not a limit: expected a share of the captions such as 60% or 0.6, after a measure and = "
            f"if it is not for {_DEFAULT}, such as near-duplicates=5%"
        )
    return Limit(measure, share)


def exceeded(audit: CaptionAudit, limits: Iterable[Limit]) -> list[str]:
    """Return a line for each limit that the captions exceed.

    Raises:
        ValueError: a limit needs a trigger or a budget, and the audit has none.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.audit import CaptionAudit
        >>> with CaptionAudit() as audit:
        ...     audit.add("a red cat", "1.txt")
        ...     audit.add("a red dog", "2.txt")
        ...     exceeded(audit, [parse_limit("60%"), parse_limit("empty=0")])
        ["term: more than 60 % of 2 captions: 'a red' 2 (100 %), 'red' 2 (100 %)"]
    """
    lines = []
    for limit in limits:
        found = MEASURES[limit.measure][1](audit)
        total = audit.captions + (audit.missing if limit.measure == "missing" else 0)
        over = [(what, count) for what, count in found if count > limit.share * total]
        if over:
            shown = ", ".join(_shown(limit, what, count, total) for what, count in over[:_MAX_SHOWN])
            more = f" and {len(over) - _MAX_SHOWN} more" if len(over) > _MAX_SHOWN else ""
            lines.append(f"{limit.measure}: more than {100 * limit.share:g} % of {total:,} captions: {shown}{more}")
    return lines


def _shown(limit: Limit, what: str, count: int, total: int) -> str:
    name = repr(what) if limit.measure in _QUOTED else what
    return f"{name} {count:,} ({100 * count / total:.3g} %)"
