"""Detection of degenerate repetition, where a model repeats the same passage, in token ids or in text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

# A repetition is a unit that occurs several times in a row, without a gap, over a minimum length. Correct captions
# repeat words and phrases ("In the top left there are two small red stars. In the bottom left there are two small blue
# squares."), but hardly ever the same words in the same order three times in a row. A short unit must occur more
# often: a sign may say "ha ha ha ha", and a shelf may hold "red, blue, red, blue, red, blue".
_SHORT_UNIT = 8  # a unit of fewer items must occur _SHORT_REPEATS times, a longer one _LONG_REPEATS times
_SHORT_REPEATS, _LONG_REPEATS = 5, 3
_MIN_TOKENS, _MIN_WORDS, _MIN_CHARACTERS = 24, 16, 80  # minimum length of the whole repetition
_MAX_EARLIER = 8  # earlier positions of an n-gram to compare; in a repetition it occurs once per period
# A sentence that occurs this often counts anywhere in the text; shorter sentences ("It is red.") do not count.
_SENTENCE_REPEATS, _MIN_SENTENCE_WORDS = 3, 5
_UNSPACED = re.compile(rf"\S{{{_MIN_CHARACTERS},}}")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?;]+(?:\s+|$)|\n+")


@dataclass(frozen=True)
class Repetition:
    """A unit that is repeated.

    Attributes:
        unit: the unit as text; token ids are separated by spaces.
        period: length of the unit in items (token ids, words, or characters).
        repeats: how often the unit occurs; fractional if the last occurrence is incomplete.
        start: index of the item where the first occurrence starts, so `ids[: start + period]` contains the unit once;
            -1 if the repeated sentences are not adjacent.
    """

    unit: str
    period: int
    repeats: float
    start: int


def find_repetition(sequence: Sequence[int] | str) -> Repetition | None:
    """Return the longest repetition in token ids or in a text, or None.

    Token ids are compared exactly. In a text, words are compared without case and punctuation; then the characters of
    long runs without spaces ("hahaha", Chinese); then sentences, which need not be adjacent.

    The time is proportional to the length, except for very repetitive input: about 0.2 ms for a caption of 150 words.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.rules.repetition import find_repetition
        >>> find_repetition("A dog. " + "There is another dog to the left of it. " * 4).repeats
        4.0
        >>> find_repetition("In the top left there are two red stars. In the top right there are two blue stars.")
    """
    if not isinstance(sequence, str):
        ids = [int(item) for item in sequence]
        found = _longest_run(ids, _MIN_TOKENS)
        return found and _repetition(found, " ".join(map(str, ids[found[1] : found[1] + found[0]])))
    words = [word.casefold() for word in _WORD.findall(sequence)]
    found = _longest_run(words, _MIN_WORDS)
    if found:
        return _repetition(found, " ".join(words[found[1] : found[1] + found[0]]))
    for unspaced in _UNSPACED.finditer(sequence):
        found = _longest_run(unspaced[0], _MIN_CHARACTERS)
        if found:
            period, start, length = found
            return _repetition((period, unspaced.start() + start, length), unspaced[0][start : start + period])
    return _repeated_sentence(sequence)


def _repetition(found: tuple[int, int, int], unit: str) -> Repetition:
    period, start, length = found
    return Repetition(unit.strip(), period, round(length / period, 2), start)


def _longest_run(items: Sequence[Hashable], min_length: int) -> tuple[int, int, int] | None:
    """Return (period, start, length) of the longest run that counts as a repetition."""
    best: tuple[int, int, int] | None = None
    for period in _candidate_periods(items, min_length // 2):
        if best and period % best[0] == 0:
            continue  # the same run with a multiple of its period
        needed = max(min_length, period * (_SHORT_REPEATS if period < _SHORT_UNIT else _LONG_REPEATS))
        equal = 0  # consecutive items that equal the one a period earlier
        for index in range(period, len(items) + 1):
            if index < len(items) and items[index] == items[index - period]:
                equal += 1
                continue
            length = equal + period
            if equal and length >= needed and (best is None or length > best[2]):
                best = (period, index - length, length)
            equal = 0
    return best


def _candidate_periods(items: Sequence[Hashable], width: int) -> list[int]:
    """Return the distances at which an n-gram of `width` items recurs; the period of any repetition is among them.

    A repetition has at least three periods and at least 2 x `width` items, so it continues for more than `width` items
    after its first period. Nearly all captions repeat no n-gram of that length, so they have no candidates.
    """
    positions: dict[tuple[Hashable, ...], list[int]] = {}
    distances: set[int] = set()
    max_period = len(items) // _LONG_REPEATS
    for index in range(len(items) - width + 1):
        earlier = positions.setdefault(tuple(items[index : index + width]), [])
        distances.update(index - before for before in earlier[-_MAX_EARLIER:] if index - before <= max_period)
        earlier.append(index)
    return sorted(distances)


def _repeated_sentence(text: str) -> Repetition | None:
    counts: Counter[str] = Counter()
    for sentence in _SENTENCE_END.split(text):
        words = _WORD.findall(sentence)
        if len(words) >= _MIN_SENTENCE_WORDS:
            counts[" ".join(words).casefold()] += 1
    if not counts:
        return None
    sentence, count = counts.most_common(1)[0]
    return Repetition(sentence, len(sentence.split()), float(count), -1) if count >= _SENTENCE_REPEATS else None
