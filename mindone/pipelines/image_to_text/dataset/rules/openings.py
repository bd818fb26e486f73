"""Openings such as "The image shows", which say nothing of the picture: found at a caption's start and taken away."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

# A picture may be named by what it is made of ("the painting shows"): that is content, and such openings stay.
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
# Each is matched at the start, without regard to case, and must be followed by what the picture shows.
_OPENINGS = (
    # The image shows (that) ...; what comes next is no preposition: "The scene captures in detail" has no object yet.
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


def remove_opening(text: str, openings: Sequence[str] = (), usual: bool = True) -> str:
    """Return a caption without an opening that tells of the picture in place of its content.

    The first letter left becomes a capital, unless the word has capitals of its own ("iPhone"). Several openings in
    a row all go. A caption that consists of an opening alone stays as it is, so a caption is never emptied.

    Args:
        openings: further texts to remove from the start, in any case, as they stand.
        usual: remove the usual ones too; False: those of `openings` alone.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.rules.openings import remove_opening
        >>> remove_opening("In this picture, we can see a dog on a sofa.")
        'A dog on a sofa.'
        >>> remove_opening("The image's colours are warm.")
        "The image's colours are warm."
    """
    pattern = _pattern(tuple(openings), usual)
    left = text.strip()
    while found := pattern.match(left):
        rest = left[found.end() :].lstrip(" ,:")
        if not any(character.isalnum() for character in rest):
            break
        left = rest
    return _begin(left) if left != text.strip() else text.strip()


@lru_cache(maxsize=64)
def _pattern(own: tuple[str, ...], usual: bool) -> re.Pattern[str]:
    # An opening of the user's ends where a word ends: "The photo" is not to cut "The photographer".
    mine = [rf"{re.escape(opening.strip())}(?!\w)" for opening in own if opening.strip()]
    rows = [*mine, *(opening.replace(" ", r"\s+") for opening in _OPENINGS if usual)]
    return re.compile("|".join(rows) or "(?!)", re.IGNORECASE)


def _begin(text: str) -> str:
    """Write the first letter large, behind quotes and brackets too."""
    place = next((i for i, character in enumerate(text) if character not in _QUOTES), 0)
    word = re.match(r"\w*", text[place:])
    if word is None or any(character.isupper() for character in word.group()):
        return text
    return text[:place] + text[place : place + 1].upper() + text[place + 1 :]
