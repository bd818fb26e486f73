"""Removal of openings such as "The image shows", which say nothing about the image, from the start of captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

# "The painting shows" is not in the list: that the image is a painting is content.
_NAMES = r"(?:image|picture|photo|photograph|pic|snapshot|scene|video|clip|footage|frame|visual)"
_PICTURE = rf"{_NAMES}(?: (?:provided|given|above))?"
_THE_PICTURE = rf"(?:the|this|that|these|our)(?: (?:provided|given|attached|presented|above|following))? {_PICTURE}"
_SHOWING = (
    r"(?:shows?|showcases?|depicts?|displays?|features?|captures?|portrays?|presents?|illustrates?|contains?|includes?|"
    r"represents?|reveals?|is showing|is depicting|is displaying|is featuring|is capturing|is portraying)"
)
_SEEING = (
    r"(?:(?:we|you|one|i) (?:can (?:also )?)?(?:see|observe|notice|find|spot)|(?:it )?can be seen|there can be seen)"
)
_THAT = r"(?: (?:that|how))?"
_ARTICLE = r"(?=(?:an?|the|some|several|many|two|three|four|five|there|we|you|one|i)\b)"
# Patterns for the start of a caption, ignoring case; a description of the image must follow.
_COMMON_OPENINGS = (
    # The image shows (that) ...
    rf"{_THE_PICTURE} (?:clearly |mainly |primarily |prominently |simply |also )?{_SHOWING}{_THAT}(?: us)?:? ",
    # The image is (a picture) of a dog; the image is a close-up of ...; the image appears to be a ...
    rf"{_THE_PICTURE} is (?:an? (?:image|picture) )?of ",
    rf"{_THE_PICTURE} (?:is|appears to be|seems to be) (?=an? )(?!an? (?:bit|little|lot) )",
    # This is an image of ...; here is a picture of ...; an image showing ...
    rf"(?:this is|here is|here's|it is|it's) (?:an?|the) (?:image|picture) (?:of|that {_SHOWING}|showing|depicting) ",
    r"an? (?:image|picture) (?:of|showing|depicting|featuring) ",
    # In this picture(, ) we can see ...; in the image, a man ...; in the image there is ...
    rf"in {_THE_PICTURE},? {_SEEING}{_THAT},? ",
    rf"in {_THE_PICTURE}, ",
    rf"in {_THE_PICTURE} {_ARTICLE}",
    rf"{_SEEING} in {_THE_PICTURE}{_THAT},? ",
    rf"{_SEEING}{_THAT} {_ARTICLE}",
)
_QUOTES = "\"'“”‘’«»([{*_ "


def remove_opening(text: str, openings: Sequence[str] = (), common: bool = True) -> str:
    """Return a caption without openings that refer to the image instead of describing it.

    The first letter of the result is capitalized, unless its word contains a capital ("iPhone"). Consecutive openings
    are all removed. A caption that is only an opening is unchanged, so the result is never empty.

    Args:
        text: the caption.
        openings: further literal texts to remove from the start, ignoring case.
        common: whether to remove the common openings too.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.rules.openings import remove_opening
        >>> remove_opening("In this picture, we can see a dog on a sofa.")
        'A dog on a sofa.'
        >>> remove_opening("The image's colours are warm.")
        "The image's colours are warm."
    """
    pattern = _pattern(tuple(openings), common)
    text = remaining = text.strip()
    while found := pattern.match(remaining):
        rest = remaining[found.end() :].lstrip(" ,:")
        if not any(character.isalnum() for character in rest):
            break
        remaining = rest
    return text if remaining == text else _capitalize(remaining)


@lru_cache(maxsize=64)
def _pattern(openings: tuple[str, ...], common: bool) -> re.Pattern[str]:
    # A literal opening must end at the end of a word: "The photo" must not match "The photographer".
    patterns = [rf"{re.escape(opening.strip())}(?!\w)" for opening in openings if opening.strip()]
    if common:
        patterns += [opening.replace(" ", r"\s+") for opening in _COMMON_OPENINGS]
    return re.compile("|".join(patterns) or "(?!)", re.IGNORECASE)


def _capitalize(text: str) -> str:
    """Capitalize the first letter, which may follow quotes and brackets."""
    first = next((i for i, character in enumerate(text) if character not in _QUOTES), 0)
    word = re.match(r"\w*", text[first:])
    if word is None or any(character.isupper() for character in word.group()):
        return text
    return text[:first] + text[first : first + 1].upper() + text[first + 1 :]
