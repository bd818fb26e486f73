"""What `printing` uses if `mindone` cannot be imported, so that the reason can still be printed.

Upstream's `mindone` imports MindSpore, so a broken installation of either breaks `mindone.models.share4v.display` too.
"""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")


def printable(text: str, keep: str = "\n\t") -> str:
    """Return text of printable ASCII characters; all others become escapes, except those in `keep`."""
    return "".join(
        character
        if character in keep or (character.isascii() and character.isprintable())
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def redacted(text: str) -> str:
    """Return text without user names and passwords of URLs."""
    return _USER_INFO.sub("", text)


def json_printable(document: str) -> str:
    """Return a JSON document with ASCII characters only."""
    return "".join(
        character if character.isascii() else f"\\u{ord(character):04x}" if ord(character) < 0x10000 else "?"
        for character in document
    )
