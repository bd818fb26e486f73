"""The audit of captions: counts over a stream of them in bounded memory, and their summary as JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from ..report.streaming_stats import TopCounts
from ..rules.token_budget import TokenBudgets
from ..state.token_counts import TokenCounts
from .caption_texts import CaptionText
from .near_captions import NearCaptions, NearDuplicates
from .terms import is_function_phrase, terms_of
from .trigger_word import TriggerCounts

_EDGE_WORDS = 3  # of an opening or ending
_MAX_LENGTH = 2000  # words; longer captions are counted with this length
_MAX_TAG = 500  # characters; longer tags, which are sentences, are counted by these
_MAX_PROBLEMS = 20
_CAPACITY = 100_000  # different terms of each kind; twice as many may be in memory
TERM_KINDS = ("words", "pairs", "triples", "tags")


class CaptionAudit(AbstractContextManager["CaptionAudit"]):
    """Counts what captions contain. Close it, or use it in a `with` statement: it has temporary files.

    Counts are exact up to `capacity` different terms of a kind. Beyond, rare terms are dropped; a term that was never
    dropped, as every frequent one, still has an exact count (`TopCounts.error` is 0).

    Args:
        trigger: word or phrase that every caption should have.
        budgets: text encoders' token budgets, in which captions are counted; none is cut.
        capacity: number of different words, phrases of each length, and tags to keep.

    Attributes:
        captions: number of captions.
        empty: number of captions without words.
        missing: number of rows or files without a caption, such as failed inputs.
        problems: the first of these, with the reasons.
        words, pairs, triples, tags: term -> number of captions that contain it.
        openings, endings: first and last three words -> number of captions.
        lengths: number of words -> number of captions.
        trigger: counts of the trigger, or None.
        tokens: counts by token budget.

    Raises:
        ValueError: the trigger has no letters or digits.
        OSError: a temporary file cannot be written.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.audit import CaptionAudit
        >>> with CaptionAudit(trigger="sks") as audit:
        ...     audit.add("sks, a red cat on a mat", "1.txt")
        ...     audit.add("a red dog", "2.txt")
        >>> audit.words.count("red"), audit.pairs.count("a red"), audit.trigger.present
        (2, 2, 1)
    """

    def __init__(
        self, trigger: str | None = None, budgets: TokenBudgets | None = None, capacity: int = _CAPACITY
    ) -> None:
        self.captions = self.empty = self.missing = 0
        self.problems: list[str] = []
        self.words, self.pairs, self.triples, self.tags = (TopCounts(capacity) for _ in TERM_KINDS)
        self.openings, self.endings = TopCounts(capacity), TopCounts(capacity)
        self.lengths: Counter[int] = Counter()
        self.trigger = None if trigger is None else TriggerCounts(trigger)
        self.tokens, self._budgets = TokenCounts(), budgets
        self._near = NearCaptions()
        self._found: NearDuplicates | None = None

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, text: str, source: str) -> None:
        """Count a caption; `source` says where it is."""
        terms = terms_of(text)
        self.captions += 1
        self.empty += not terms.words
        self.words.add_all(terms.words)
        self.pairs.add_all(terms.pairs)
        self.triples.add_all(terms.triples)
        self.tags.add_all([tag if len(tag) <= _MAX_TAG else f"{tag[:_MAX_TAG]}..." for tag in terms.tags])
        sequence = terms.sequence
        self.lengths[min(len(sequence), _MAX_LENGTH)] += 1
        if sequence:
            self.openings.add(" ".join(sequence[:_EDGE_WORDS]))
            self.endings.add(" ".join(sequence[-_EDGE_WORDS:]))
        if self.trigger is not None:
            self.trigger.add(sequence, source)
        if self._budgets is not None:
            counts = {
                str(budget): (count,)
                for budget, count in zip(self._budgets.budgets, self._budgets.count(text), strict=True)
            }
            self.tokens.add(counts, counts)
        self._near.add(sequence, terms.words, text, source)
        self._found = None

    def add_missing(self, problem: str) -> None:
        """Count a row or file without a caption."""
        self.missing += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)

    @property
    def near_duplicates(self) -> NearDuplicates:
        """Groups of near-duplicate captions; found when it is first asked for, and before the audit is closed."""
        if self._found is None:
            self._found = self._near.find()
        return self._found

    def close(self) -> None:
        """Delete the temporary files."""
        self._near.close()

    def top(self, kind: str, number: int, function_words: bool = False) -> list[tuple[str, int]]:
        """Return the most frequent terms of a kind in TERM_KINDS; without phrases that end in a function word.

        Args:
            kind: which terms.
            number: how many.
            function_words: return "a", "of the" and others that say nothing about a data set too.
        """
        counts: TopCounts = getattr(self, kind)
        ranked = counts.most_common()
        return [(term, count) for term, count in ranked if function_words or not is_function_phrase(term)][:number]

    def to_json(self, number: int = 30, function_words: bool = False) -> dict[str, Any]:
        """Return the audit as JSON values, with the `number` most frequent terms of each kind.

        Entries are `{"term": ..., "captions": ..., "share": ...}`, and `"at_most"` if the count may be too low.
        """
        result: dict[str, Any] = {
            "captions": self.captions,
            "empty": self.empty,
            "missing": self.missing,
            "problems": self.problems,
            "length": _quantiles(self.lengths),
        }
        for budget, found in self.tokens.budgets.items():
            over = {"over": found.over, "share": self.share(found.over)}
            result.setdefault("tokens", {})[budget] = {**_quantiles(found.tokens), **over}
        if self.trigger is not None:
            result["trigger"] = self._trigger(self.trigger)
        for kind in TERM_KINDS:
            top = self.top(kind, number, function_words)
            result[kind] = [self._entry(getattr(self, kind), term, count) for term, count in top]
        for kind in ("openings", "endings"):
            counts = getattr(self, kind)
            result[kind] = [self._entry(counts, term, count) for term, count in counts.most_common(number)]
        near = self.near_duplicates
        result["near_duplicates"] = {
            "identical": near.identical,
            "captions": near.captions,
            "share": self.share(near.captions),
            "groups": near.groups,
            "largest": [asdict(group) for group in near.largest],
        }
        return result

    def share(self, count: int) -> float:
        """Return a number of captions as a fraction of all."""
        return round(count / self.captions, 6) if self.captions else 0.0

    def _entry(self, counts: TopCounts, term: str, count: int) -> dict[str, Any]:
        error = counts.error(term)
        at_most = {"at_most": count + error} if error else {}
        return {"term": term, "captions": count, "share": self.share(count), **at_most}

    def _trigger(self, trigger: TriggerCounts) -> dict[str, Any]:
        return {
            "trigger": trigger.trigger,
            "captions": trigger.present,
            "share": self.share(trigger.present),
            "first": trigger.first,
            "missing": trigger.missing,
            "near_misses": [asdict(miss) for miss in trigger.near_misses(self.words, self.pairs)],
        }


def audit_captions(
    texts: Iterable[CaptionText], trigger: str | None = None, budgets: TokenBudgets | None = None
) -> CaptionAudit:
    """Audit a stream of captions, including their near-duplicates, and return the closed audit.

    Args:
        texts: from `caption_texts`, for example.
        trigger, budgets: as of `CaptionAudit`.

    Raises:
        What `CaptionAudit` and the stream raise.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.audit import audit_captions, caption_texts
        >>> audit = audit_captions(caption_texts("captions"), trigger="sks")  # doctest: +SKIP
        >>> audit.top("words", 3)  # doctest: +SKIP
        [('sks', 50), ('background', 50), ('white', 17)]
    """
    with CaptionAudit(trigger, budgets) as audit:
        for one in texts:
            if one.text is None:
                audit.add_missing(f"{one.source}: {one.problem}")
            else:
                audit.add(one.text, one.source)
        _ = audit.near_duplicates  # while the temporary files exist
    return audit


def _quantiles(lengths: Counter[int]) -> dict[str, Any]:
    """Return the minimum, quartiles, maximum and mean of a histogram."""
    total = sum(lengths.values())
    if not total:
        return {}
    targets = {
        "min": 0,
        "quarter": total // 4,
        "median": total // 2,
        "three_quarters": 3 * total // 4,
        "max": total - 1,
    }
    result: dict[str, Any] = {}
    passed = 0
    for length in sorted(lengths):
        passed += lengths[length]
        result |= {name: length for name, target in targets.items() if name not in result and target < passed}
    return {**result, "mean": round(sum(length * count for length, count in lengths.items()) / total, 2)}
