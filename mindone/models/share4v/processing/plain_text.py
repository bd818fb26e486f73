"""Text in which special tokens mean nothing: what strangers write is marked, so that it stays text in a prompt.

A prompt is one string, because sentencepiece must see the template's words and a user's together. So a mark goes into
every special token that a user's text contains, which hides it from everything that looks for tokens, and the tokenizer
removes the marks from the text between tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MARK = "\ufdd0"  # a noncharacter, which Unicode reserves for such use inside a program; in a text it is doubled
_MARKS = re.compile(f"{_MARK}({_MARK}?)")


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
    return re.sub(f"(?s)(?=(?:{starts}))(.)", rf"\1{_MARK}", text.replace(_MARK, _MARK * 2))


def unprotect(text: str) -> str:
    """Return the text that `protect` was given."""
    return _MARKS.sub(r"\1", text)
