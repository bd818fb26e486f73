"""Named lists of phrases that make a caption useless: `--forbid @refusals`. Words are whole, in any case.

Such phrases are looked for in finished captions, and are not kept from being generated: without its last word, a model
ends a refusal in another way. Quoted text in an image ("a sign that says sorry") must not match, so phrases are those
of a speaker about itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from mindone.models.share4v.suggestions import unknown

MARK = "@"  # a forbidden word that begins with it names a list


@dataclass(frozen=True)
class PhraseList:
    """A named list of phrases.

    Attributes:
        name: how `forbid` (`--forbid @NAME`) knows it.
        description: what it is for, in one line.
        phrases: lower case, with plain apostrophes. `(a|b)` stands for one of several words, and `[a]` for a word that
            may be left out.
    """

    name: str
    description: str
    phrases: tuple[str, ...]


_ABILITY = "(cannot|can't|can not|won't|am unable to|am not able to|'m unable to|'m not able to)"
_ROWS = (
    PhraseList(
        "refusals",
        "answers that decline to describe, and what ShareGPT4V's captioner repeats in place of a description",
        (
            "(i am|i'm) [really|very|truly] sorry",
            f"(sorry|unfortunately), [but] i{_ABILITY}",
            f"(sorry|unfortunately), [but] i {_ABILITY}",
            "i apologize",
            "my apologies",
            f"i{_ABILITY} [directly] (assist|help|comply|describe|identify|provide|fulfill|view|see|open|analyze)",
            f"i {_ABILITY} [directly] (assist|help|comply|describe|identify|provide|fulfill|view|see|open|analyze)",
            "i (do not|don't) have [the] (ability|access|permission)",
            "as an ai",
            "as a [large] language model",
            "(please|you can) (provide|upload|share) (an|the|another|a clear|a clearer) image",
            "against my (guidelines|programming|policy)",
            # Reported as ShareGPT4V issue 12: the captioner repeats it for pictures of lettering.
            "does not contain any imaginary content",
            "(descriptions are|description is) based on the visible content",
        ),
    ),
)
PHRASE_LISTS: dict[str, PhraseList] = {row.name: row for row in _ROWS}


def get_phrase_list(name: str) -> PhraseList:
    """Return the list of that name, with or without the `@`.

    Raises:
        ValueError: the name is not known; the message lists the known ones and the closest.
    """
    plain = name.removeprefix(MARK)
    if plain not in PHRASE_LISTS:
        raise ValueError(unknown("list of forbidden phrases", plain, PHRASE_LISTS, f"{MARK}{{}}".format))
    return PHRASE_LISTS[plain]


def find_phrase(text: str, name: str) -> str | None:
    """Return the first phrase of a list that occurs in a text, as the text has it; None if there is none.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.rules.phrase_lists import find_phrase
        >>> find_phrase("I’m sorry, but I cannot see an image.", "@refusals")
        "I'm sorry"
        >>> find_phrase("A hand-written sign says that the shop is closed, sorry.", "@refusals") is None
        True
    """
    found = _pattern(get_phrase_list(name).name).search(" ".join(text.replace("\u2019", "'").split()))
    return found and found[0]


@lru_cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile("|".join(map(_regex, PHRASE_LISTS[name].phrases)), re.IGNORECASE)


def _regex(phrase: str) -> str:
    """Return a phrase's regular expression: `[really|very]` may be left out, with the space that follows it."""
    optional = re.sub(r"\[([^\]]*)\] ", r"(?:(?:\1) )?", phrase)
    return rf"(?<!\w){optional}(?!\w)"
