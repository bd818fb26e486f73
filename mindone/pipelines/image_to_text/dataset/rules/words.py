"""Words, phrases and sentences of a text: finding, counting and splitting them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

# In scripts without spaces each character counts as a word, which is a good approximation.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
# A run of points is looked at from its start only: from each of its points, a long one would take quadratic time.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’)\]]*(?=\s+\S)|[。！？]+|(?=\n)")
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|no|vs|etc|approx|jr|sr|inc|co|ltd|fig|vol|ca|cf|e\.g|i\.e|a\.m|p\.m)|\b[a-z])\.$",
    re.IGNORECASE,
)


def has_word(text: str, word: str) -> bool:
    """Return whether a word or phrase occurs as whole words; one in lower case matches in any case.

    Example:
        >>> has_word("The Cat's tail", "cat"), has_word("a category", "cat"), has_word("an apple", "Apple")
        (True, False, False)
    """
    return _word_pattern(word).search(text) is not None


def missing_words(text: str, words: Iterable[str]) -> list[str]:
    """Return the words and phrases that do not occur, as `has_word` defines it."""
    return [word for word in words if not has_word(text, word)]


def count_words(text: str) -> int:
    """Count words separated by spaces; in Chinese, Japanese and Korean each character counts."""
    return sum(1 for _ in _WORDS.finditer(text))


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, which concatenated are the text; abbreviations such as "Mr." end no sentence.

    Example:
        >>> split_sentences("Dr. Smith sits. He reads, e.g. a book!")
        ['Dr. Smith sits. ', 'He reads, e.g. a book!']
    """
    parts, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        if end.end() <= start or _ABBREVIATION.search(text, max(start, end.end() - 12), end.end()):
            continue
        stop = end.end()
        while stop < len(text) and text[stop].isspace():
            stop += 1
        if text[stop : stop + 1].islower() and "\n" not in text[end.end() : stop]:  # "3.5 ft. tall", '"Stop!" he says'
            continue
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]] if start < len(text) else parts


@lru_cache(maxsize=1024)
def _word_pattern(word: str) -> re.Pattern[str]:
    body = r"\s+".join(map(re.escape, word.split()))
    # Not \b: "C++" and "#1" begin or end with a character that is not a letter. Scripts without spaces have no word
    # boundaries.
    left = r"(?<!\w)" if not re.match(f"[{_UNSPACED}]", word) else ""
    right = r"(?!\w)" if not re.search(f"[{_UNSPACED}]$", word) else ""
    return re.compile(f"{left}{body}{right}", re.IGNORECASE if word == word.lower() else 0)
