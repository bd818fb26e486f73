"""A trigger word in captions: where it is, where it is missing, and words that look like it misspelt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..report.streaming_stats import TopCounts
from .terms import words_of

_MAX_POSITION = 50  # later positions are counted with this one
_MAX_MISSING = 20
_LONG_TRIGGER, _SHORT_DISTANCE, _LONG_DISTANCE = 4, 1, 2  # letters; edits up to which a word is a near miss


@dataclass(frozen=True)
class NearMiss:
    """A word that differs from the trigger by one or two letters.

    Attributes:
        term: the word, or phrase.
        distance: number of letters to insert, delete or replace.
        captions: number of captions that have it.
    """

    term: str
    distance: int
    captions: int


@dataclass
class TriggerCounts:
    """Counts the captions with a trigger word or phrase; case and punctuation do not matter.

    Attributes:
        trigger: the word or phrase.
        present: number of captions that have it.
        first: number of captions that begin with it.
        positions: index of its first word -> number of captions.
        missing: sources of the first captions without it.

    Raises:
        ValueError: the trigger has no letters or digits.
    """

    trigger: str
    present: int = 0
    positions: Counter[int] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.words = tuple(words_of(self.trigger))
        if not self.words:
            raise ValueError(f"the trigger {self.trigger!r} has no letters or digits: give the word of the captions")

    @property
    def first(self) -> int:
        """Number of captions that begin with the trigger."""
        return self.positions[0]

    def add(self, sequence: Sequence[str], source: str) -> None:
        """Count a caption, of which the words are given in order."""
        position = _find(sequence, self.words)
        if position is not None:
            self.present += 1
            self.positions[min(position, _MAX_POSITION)] += 1
        elif len(self.missing) < _MAX_MISSING:
            self.missing.append(source)

    def near_misses(self, words: TopCounts, pairs: TopCounts) -> list[NearMiss]:
        """Return the words, for a trigger of two words also the phrases, that look like the trigger misspelt."""
        joined, spaced = "".join(self.words), " ".join(self.words)
        limit = _LONG_DISTANCE if len(joined) >= _LONG_TRIGGER else _SHORT_DISTANCE
        counts = dict(words.most_common()) | (dict(pairs.most_common()) if len(self.words) == 2 else {})
        found = []
        for term, count in counts.items():
            if term == spaced or term in self.words:
                continue
            distance = min(edit_distance(term, joined, limit), edit_distance(term, spaced, limit))
            if distance <= limit:
                found.append(NearMiss(term, max(distance, 1), count))
        return sorted(found, key=lambda miss: (miss.distance, -miss.captions, miss.term))


def edit_distance(one: str, other: str, limit: int) -> int:
    """Return the Levenshtein distance of two texts, or `limit` + 1 if it is larger than `limit`.

    Example:
        >>> edit_distance("ohwx", "ohxw", 2), edit_distance("cat", "horse", 2)
        (2, 3)
    """
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    previous = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        current = [row]
        for column, compared in enumerate(other, 1):
            replaced = previous[column - 1] + (letter != compared)
            current.append(min(replaced, previous[column] + 1, current[-1] + 1))
        if min(current) > limit:
            return limit + 1
        previous = current
    return min(previous[-1], limit + 1)


def _find(sequence: Sequence[str], words: tuple[str, ...]) -> int | None:
    count = len(words)
    return next((i for i in range(len(sequence) - count + 1) if tuple(sequence[i : i + count]) == words), None)
