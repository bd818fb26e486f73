"""The suffix of an image that is written under another name."""

from __future__ import annotations

import re
from pathlib import PurePath

from ..state.records import Item

# First bytes of image files, to choose the suffix of images without a file name.
_SIGNATURES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"RIFF", ".webp"))
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


def possible_suffixes(item: Item) -> set[str]:
    """Return the suffixes that `image_suffix` may return for an input whose bytes are not known."""
    return {image_suffix(item, start) for start, _ in (*_SIGNATURES, (b"", ""))}


def image_suffix(item: Item, data: bytes) -> str:
    """Return the suffix for an image file, in lower case: of its name, or by its first bytes."""
    suffix = PurePath(item.path or item.locator.get("member", "")).suffix.lower()
    if _SUFFIX.fullmatch(suffix):
        return suffix
    return next((suffix for start, suffix in _SIGNATURES if data.startswith(start)), ".jpg")
