"""Facts that a caption states in single words: colors, numbers and places, with the words that could stand there."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Words of a group exclude each other; the words of one entry mean the same. "a" is an alternative to a number, but no
# fact that is checked: most nouns have it.
COLORS = (
    *("red", "orange", "yellow", "green", "blue", "purple violet", "pink", "brown", "black", "white", "gray grey"),
    *("beige", "golden gold", "silver"),
)
NUMBERS = ("one a an", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
GROUPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "color": (COLORS,),
    "number": (NUMBERS,),
    "place": (("left", "right"), ("top", "bottom"), ("above", "below"), ("upper", "lower")),
}
_UNCHECKED = frozenset(("a", "an"))
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class StatedFact:
    """A word of a caption that states a color, a number or a place.

    Attributes:
        kind: a key of GROUPS.
        word: as in the caption.
        start: index of its first character.
        same: words that mean the same, in lower case, with this one.
        others: words that contradict it.
    """

    kind: str
    word: str
    start: int
    same: tuple[str, ...]
    others: tuple[str, ...]


def _known() -> dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]:
    known = {}
    for kind, groups in GROUPS.items():
        for group in groups:
            meanings = [tuple(entry.split()) for entry in group]
            for same in meanings:
                others = tuple(word for meaning in meanings if meaning is not same for word in meaning)
                known.update({word: (kind, same, others) for word in same if word not in _UNCHECKED})
    return known


_KNOWN = _known()


def stated_facts(caption: str) -> list[StatedFact]:
    """Return the facts of a caption in order.

    Example:
        >>> from mindone.pipelines.image_to_text.evaluation.stated_facts import stated_facts
        >>> [(fact.kind, fact.word) for fact in stated_facts("Two red stars in the top left of a gray wall.")]
        [('number', 'Two'), ('color', 'red'), ('place', 'top'), ('place', 'left'), ('color', 'gray')]
    """
    return [
        StatedFact(known[0], found[0], found.start(), known[1], known[2])
        for found in _WORD.finditer(caption)
        if (known := _KNOWN.get(found[0].lower())) is not None
    ]
