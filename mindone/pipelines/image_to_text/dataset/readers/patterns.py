"""Patterns of file names: `**` and braces, as shells have them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SPECIAL = re.compile(r"[*?\[]")


def matches(path: str, pattern: str) -> bool:
    """Tell whether a relative path fits a pattern; one without `/` is compared with the path's last part.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.patterns import matches
        >>> matches("cats/old/1.jpg", "*.jpg"), matches("cats/old/1.jpg", "cats/*.jpg"), matches("1.jpg", "**/*.jpg")
        (True, False, True)
    """
    parts = path.split("/")
    if "/" not in pattern:
        return fnmatchcase(parts[-1], pattern)
    return _match(parts, pattern.removeprefix("./").strip("/").split("/"))


def _match(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Compare part by part; `reached` holds how many parts the patterns so far can stand for."""
    reached = {0}
    for pattern in patterns:
        if pattern == "**":
            reached = set(range(min(reached), len(parts) + 1)) if reached else set()
        else:
            reached = {at + 1 for at in reached if at < len(parts) and fnmatchcase(parts[at], pattern)}
    return len(parts) in reached


def split_pattern(text: str) -> tuple[str, str]:
    """Split "photos/**/*.jpg" into a directory and a pattern inside it; the pattern is "" where there is none.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.patterns import split_pattern
        >>> split_pattern("photos/**/*.jpg"), split_pattern("*.tar"), split_pattern("photos")
        (('photos', '**/*.jpg'), ('.', './*.tar'), ('photos', ''))
    """
    parts = text.replace(os.sep, "/").split("/")
    first = next((place for place, part in enumerate(parts) if _SPECIAL.search(part)), None)
    if first is None:
        return text, ""
    base = "/".join(parts[:first]) or ("/" if first else ".")
    pattern = "/".join(parts[first:])
    return base, pattern if "/" in pattern else f"./{pattern}"


def expand_braces(text: str) -> list[str]:
    """Write out `{0000..0012}` and `{a,b}`.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.patterns import expand_braces
        >>> expand_braces("{a,b}-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    for found in _BRACES.finditer(text):
        span = _RANGE.fullmatch(found[1])
        if span:
            first, last, width = int(span[1]), int(span[2]), len(span[1])
            step = 1 if last >= first else -1
            choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
        elif "," in found[1]:
            choices = found[1].split(",")
        else:
            continue
        return [
            one for choice in choices for one in expand_braces(text[: found.start()] + choice + text[found.end() :])
        ]
    return [text]
