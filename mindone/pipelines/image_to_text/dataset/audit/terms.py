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
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}](?:(?![{_UNSPACED}])[\w'-])*")
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
