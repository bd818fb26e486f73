"""Terms of a caption: its words, phrases of two and three words, and tags.

The definitions are those of the package caption-audit, so that its figures and ours can be compared: a phrase lies
inside one segment, and a segment ends at a comma, a semicolon, a line end, or the end of a sentence. What is added is
other scripts: a letter of any of them belongs to a word, and each Chinese or Japanese character is a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# Vowel signs, accents and joiners, which Python's \w leaves out, with the letters between them (the ranges bridge
# letters and digits only): without them a word of Hindi, Thai or vocalized Arabic falls into pieces.
_MARKS = (
    r"\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05c5\u05c7\u0610-\u061a\u064b-\u065f"
    r"\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0711-\u07f3\u07fd\u0816-\u082d\u0859-\u085b\u0898-\u08e1"
    r"\u08e3-\u0963\u0981-\u09e3\u09fe-\u0a75\u0a81-\u0ae3\u0afa-\u0b63\u0b82-\u0bd7\u0c00-\u0c63\u0c81-\u0c83"
    r"\u0cbc-\u0d4d\u0d57-\u0d63\u0d81-\u0df3\u0e31-\u0e3a\u0e47-\u0e4e\u0eb1-\u0ecd\u0f18-\u0f19\u0f35\u0f37"
    r"\u0f39\u0f3e-\u0f84\u0f86-\u0fbc\u0fc6\u102b-\u103e\u1056-\u109d\u135d-\u135f\u1712-\u1734\u1752-\u17d3"
    r"\u17dd\u1920-\u193b\u1a17-\u1a1b\u1a55-\u1a7f\u1ab0-\u1b44\u1b6b-\u1b73\u1b80-\u1bf3\u1c24-\u1c37"
    r"\u1cd0-\u1cd2\u1cd4-\u1dff\u200c\u200d\u20d0-\u20f0\ua802-\ua827\ua82c\ua880-\ua8c5\ua8e0-\ua8f1"
    r"\ua8ff-\ua92d\ua947-\ua953\ua980-\ua9c0\ua9e5-\uaa4d\uaa7b-\uaac1\uaaeb-\uaaef\uaaf5-\uaaf6\uabe3-\uabea"
    r"\uabec-\uabed"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}](?:(?![{_UNSPACED}])[\w'{_MARKS}-])*")
_SEGMENT_END = re.compile(r"[,;、\n\r]+|\.\s|\.$|。")
_SPACES = re.compile(r"\s+")
_SAME = str.maketrans({"’": "'", "‘": "'", "–": "-", "—": "-"})
# Words that nearly every English sentence has: their frequency says nothing about a data set.
_FUNCTION_WORDS = """
    a an the this that these those it its it's he him his she her hers they them their theirs we us our you your i me my
    who whom whose which what where when why how there here of on in at to from by with without for as into onto over
    under above below near beside between among through during across against along around behind before after toward
    towards upon within beneath past off out up down about than and or but nor so yet if while because is are was were
    be been being am has have had having do does did done can could may might must will would shall should not no some
    any each every other another both all many much more most few less very quite rather just also too then only such
    own same one's s t
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Terms:
    """What occurs in one caption, each term once, in the order of its first occurrence.

    Attributes:
        sequence: all words in order, with repetitions.
        words: different words.
        pairs, triples: different phrases of two and of three words.
        tags: different segments.
    """

    sequence: tuple[str, ...]
    words: tuple[str, ...]
    pairs: tuple[str, ...]
    triples: tuple[str, ...]
    tags: tuple[str, ...]


def normalized(text: str) -> str:
    """Return a text in lower case, with compatible characters and the kinds of quotes and dashes made equal."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text).translate(_SAME).lower()


def words_of(text: str) -> list[str]:
    """Return the words of a text in order.

    Example:
        >>> words_of("A T-shirt, the cat's “toy”.")
        ['a', 't-shirt', 'the', "cat's", 'toy']
    """
    return _words(normalized(text))


def terms_of(text: str) -> Terms:
    """Return the terms of a caption.

    Example:
        >>> terms = terms_of("sks, a red cat. A red hat")
        >>> terms.pairs, terms.tags
        (('a red', 'red cat', 'red hat'), ('sks', 'a red cat', 'a red hat'))
    """
    sequence: list[str] = []
    pairs: list[str] = []
    triples: list[str] = []
    tags = []
    for segment in _SEGMENT_END.split(normalized(text)):
        segment = _SPACES.sub(" ", segment.strip().strip("."))
        if not segment:
            continue
        tags.append(segment)
        words = _words(segment)
        sequence += words
        pairs += map(" ".join, pairwise(words))
        triples += map(" ".join, zip(words, words[1:], words[2:]))  # noqa: B905  the lists differ in length
    return Terms(tuple(sequence), _different(sequence), _different(pairs), _different(triples), _different(tags))


def is_function_phrase(term: str) -> bool:
    """Return whether a term says nothing about a data set: it ends in a function word, or has no others.

    Example:
        >>> is_function_phrase("of the"), is_function_phrase("standing in"), is_function_phrase("the red cat")
        (True, True, False)
    """
    return term.rpartition(" ")[2] in FUNCTION_WORDS


def _words(normal: str) -> list[str]:
    return [stripped for word in _WORD.findall(normal) if (stripped := word.strip("-_'"))]


def _different(terms: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(terms))
