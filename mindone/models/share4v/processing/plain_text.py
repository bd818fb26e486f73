"""Escapes special tokens in the text of a user, so that they stay plain text in a prompt.

A prompt is one string, because sentencepiece must see the template's words and a user's together. Therefore an escape
character is put into every special token that a user's text contains, which hides it from everything that looks for
tokens, and the tokenizer removes the escape characters from the text between tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ESCAPE = "\ufdd0"  # a noncharacter, which Unicode reserves for such use inside a program; in a text it is doubled
_ESCAPES = re.compile(f"{_ESCAPE}({_ESCAPE}?)")


def protect(text: str, tokens: Iterable[str]) -> str:
    """Return text in which none of `tokens` occurs; `unprotect` reverses it.

    Args:
        text: any text.
        tokens: of two or more characters each.

    Example:
        >>> from mindone.models.share4v.processing.plain_text import protect, unprotect
        >>> text = protect("What does <image> mean?", ["<image>"])
        >>> "<image>" in text, unprotect(text)
        (False, 'What does <image> mean?')
    """
    starts = "|".join(re.escape(token) for token in tokens)
    # A look-ahead, so that tokens that overlap are found as well.
    return re.sub(f"(?s)(?=(?:{starts}))(.)", rf"\1{_ESCAPE}", text.replace(_ESCAPE, _ESCAPE * 2))


def unprotect(text: str) -> str:
    """Return the text that `protect` was given."""
    return _ESCAPES.sub(r"\1", text)
