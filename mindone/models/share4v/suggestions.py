"""The message about an unknown name: what was received, what is known, and the closest match."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches

MAX_NAMES = 40


def unknown(kind: str, name: object, known: Iterable[str], quote: Callable[[object], str] = repr) -> str:
    """Return the message for a name that is not one of `known`; of many names, only the first 40 are listed.

    Args:
        kind: what was named, such as "vision_tower" or "conversation template".
        name: what was received.
        known: the names that are accepted.
        quote: how a name is written where it stands alone.

    Example:
        >>> from mindone.models.share4v.suggestions import unknown
        >>> unknown("task", "image2text", ["image-text-to-text", "image-to-text"])
        "unknown task 'image2text'; known: image-text-to-text, image-to-text. Did you mean 'image-to-text'?"
    """
    names = list(map(str, known))
    rest = len(names) - MAX_NAMES
    listed = ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
    close = get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {quote(close[0])}?" if close else ""
    return f"unknown {kind} {quote(name)}; known: {listed}.{hint}"
