"""Repetition loops: where a model has begun to say the same thing over and over, in token ids or in text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

# A loop is a piece that stands several times in a row, without a gap, over some length. True captions repeat words and
# forms ("In the top left there are two small red stars. In the bottom left there are two small blue squares."), yet
# hardly the same words in the same order three times running. What is short must come more often: a sign may say
# "ha ha ha ha", a shelf may hold "red, blue, red, blue, red, blue".
_SHORT = 8  # items; from here on a piece needs _LONG_REPEATS, below it _SHORT_REPEATS
_SHORT_REPEATS, _LONG_REPEATS = 5, 3
_LEAST_TOKENS, _LEAST_WORDS, _LEAST_CHARACTERS = 24, 16, 80
_LOOKED_BACK = 8  # earlier places of the same neighbours that are compared; a loop has the same ones at every period
# The same sentence so many times makes a loop wherever it stands; so short ones as "It is red." do not count.
_SENTENCE_REPEATS, _SENTENCE_WORDS = 3, 5
_UNSPACED = re.compile(rf"\S{{{_LEAST_CHARACTERS},}}")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?;]+(?:\s+|$)|\n+")


@dataclass(frozen=True)
class Loop:
    """A piece that is repeated.

    Attributes:
        unit: the piece as text; its ids, written with spaces between, where ids were given.
        period: how long it is, in items (ids, words, or characters).
        repeats: how often it stands there, the last time perhaps in part: not a whole number.
        start: the item at which it begins for the first time, so `ids[: start + period]` has it once. -1 where equal
            sentences stand apart.
    """

    unit: str
    period: int
    repeats: float
    start: int


def is_loop(sequence: Sequence[int] | str) -> bool:
    """Tell whether token ids, or a text, run in a loop somewhere.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.rules.repetition import is_loop
        >>> is_loop("A dog. " + "There is another dog to the left of it. " * 4)
        True
        >>> is_loop("In the top left there are two red stars. In the top right there are two blue stars.")
        False
    """
    return find_loop(sequence) is not None


def find_loop(sequence: Sequence[int] | str) -> Loop | None:
    """Return the longest loop of token ids or of a text, or None where there is none.

    Ids are compared as they are. Of a text are compared words (case and punctuation left out), then the characters of
    what has no spaces ("hahaha", Chinese), and sentences, which count wherever they stand.

    The time is in proportion to the length, except where much is repeated: some 0.2 ms for a caption of 150 words.
    """
    if not isinstance(sequence, str):
        ids = [int(item) for item in sequence]
        found = _longest(ids, _LEAST_TOKENS)
        return found and _loop(found, " ".join(map(str, ids[found[1] : found[1] + found[0]])))
    words = [word.casefold() for word in _WORD.findall(sequence)]
    found = _longest(words, _LEAST_WORDS)
    if found:
        return _loop(found, " ".join(words[found[1] : found[1] + found[0]]))
    for unspaced in _UNSPACED.finditer(sequence):
        found = _longest(unspaced[0], _LEAST_CHARACTERS)
        if found:
            period, start, length = found
            return _loop((period, unspaced.start() + start, length), unspaced[0][start : start + period])
    return _repeated_sentence(sequence)


def _loop(found: tuple[int, int, int], unit: str) -> Loop:
    period, start, length = found
    return Loop(unit.strip(), period, round(length / period, 2), start)


def _longest(items: Sequence[Hashable], least: int) -> tuple[int, int, int] | None:
    """Return (period, start, length) of the longest run that counts as a loop."""
    best: tuple[int, int, int] | None = None
    for period in _periods(items, least // 2):
        if best and period % best[0] == 0:
            continue  # the same run, read two pieces at a time
        needed = max(least, period * (_SHORT_REPEATS if period < _SHORT else _LONG_REPEATS))
        run = 0
        for place in range(period, len(items) + 1):
            if place < len(items) and items[place] == items[place - period]:
                run += 1
                continue
            length = run + period
            if run and length >= needed and (best is None or length > best[2]):
                best = (period, place - length, length)
            run = 0
    return best


def _periods(items: Sequence[Hashable], width: int) -> list[int]:
    """Return the distances at which `width` neighbours come again; the period of every loop is one of them.

    A loop is at least three periods and at least 2 x `width` long, so it goes on for more than `width` items after its
    first period. Captions that repeat nothing of that length, which are nearly all, have no such distance.
    """
    places: dict[tuple[Hashable, ...], list[int]] = {}
    distances: set[int] = set()
    most = len(items) // _LONG_REPEATS
    for place in range(len(items) - width + 1):
        earlier = places.setdefault(tuple(items[place : place + width]), [])
        distances.update(place - before for before in earlier[-_LOOKED_BACK:] if place - before <= most)
        earlier.append(place)
    return sorted(distances)


def _repeated_sentence(text: str) -> Loop | None:
    counts: Counter[str] = Counter()
    for sentence in _SENTENCE_END.split(text):
        words = _WORD.findall(sentence)
        if len(words) >= _SENTENCE_WORDS:
            counts[" ".join(words).casefold()] += 1
    if not counts:
        return None
    sentence, count = counts.most_common(1)[0]
    return Loop(sentence, len(sentence.split()), float(count), -1) if count >= _SENTENCE_REPEATS else None
