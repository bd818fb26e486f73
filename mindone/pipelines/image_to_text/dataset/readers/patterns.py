"""Patterns of file names: `*`, `**` and braces, as in shells."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from fnmatch import fnmatchcase

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SPECIAL = re.compile(r"[*?\[]")


def matches(path: str, pattern: str) -> bool:
    """Return whether a relative path matches a pattern; a pattern without `/` is compared with the file name only.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.patterns import matches
        >>> matches("cats/old/1.jpg", "*.jpg"), matches("cats/old/1.jpg", "cats/*.jpg"), matches("1.jpg", "**/*.jpg")
        (True, False, True)
    """
    if not path.isascii():  # the same letters may be encoded in two ways
        path, pattern = unicodedata.normalize("NFC", path), unicodedata.normalize("NFC", pattern)
    parts = path.split("/")
    if "/" not in pattern:
        return fnmatchcase(parts[-1], pattern)
    return _match(parts, pattern.removeprefix("./").strip("/").split("/"))


def _match(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Match component by component."""
    reached = {0}  # the numbers of leading parts that the patterns so far can match
    for pattern in patterns:
        if pattern == "**":
            reached = set(range(min(reached), len(parts) + 1)) if reached else set()
        else:
            reached = {count + 1 for count in reached if count < len(parts) and fnmatchcase(parts[count], pattern)}
    return len(parts) in reached


def split_pattern(text: str) -> tuple[str, str]:
    """Split "photos/**/*.jpg" into a directory and a pattern inside it; the pattern of a plain path is "".

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.patterns import split_pattern
        >>> split_pattern("photos/**/*.jpg"), split_pattern("*.tar"), split_pattern("photos")
        (('photos', '**/*.jpg'), ('.', './*.tar'), ('photos', ''))
    """
    parts = text.replace(os.sep, "/").split("/")
    first = next((index for index, part in enumerate(parts) if _SPECIAL.search(part)), None)
    if first is None:
        return text, ""
    base = "/".join(parts[:first]) or ("/" if first else ".")
    pattern = "/".join(parts[first:])
    return base, pattern if "/" in pattern else f"./{pattern}"


def expand_braces(text: str) -> list[str]:
    """Expand `{0000..0012}` and `{a,b}`.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.patterns import expand_braces
        >>> expand_braces("{a,b}-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    for found in _BRACES.finditer(text):
        limits = _RANGE.fullmatch(found[1])
        if limits:
            first, last, width = int(limits[1]), int(limits[2]), len(limits[1])
            step = 1 if last >= first else -1
            choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
        elif "," in found[1]:
            choices = found[1].split(",")
        else:
            continue
        before, after = text[: found.start()], text[found.end() :]
        return [expanded for choice in choices for expanded in expand_braces(before + choice + after)]
    return [text]
