"""Existing captions: reading them, and combining them with new ones."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

from .regular_files import open_own

KEPT_EXISTING = "kept existing"  # note of a record that keeps the existing caption
MAX_CAPTION_BYTES = 2**20  # a larger file is not a caption
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Mode -> function of (existing caption, new caption, separator); neither caption is empty.
MODES: dict[str, Callable[[str, str, str], str]] = {
    "skip": lambda existing, new, separator: existing,
    "overwrite": lambda existing, new, separator: new,
    "append": lambda existing, new, separator: existing + separator + new,
    "prepend": lambda existing, new, separator: new + separator + existing,
}


def merge_captions(mode: str, existing: str | None, new: str, separator: str = " ") -> str:
    """Combine an existing caption with a new one; surrounding whitespace is removed, and empty captions are ignored.

    Args:
        mode: "skip" (keep the existing caption), "overwrite", "append" (add the new one after it) or "prepend".
        existing: the existing caption, or None.
        new: the new caption.
        separator: text between the two.

    Raises:
        ValueError: unknown mode.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.existing_captions import merge_captions
        >>> merge_captions("append", "A cat.", "It sleeps.")
        'A cat. It sleeps.'
        >>> merge_captions("skip", None, "It sleeps.")
        'It sleeps.'
    """
    _check_mode(mode)
    existing, new = (existing or "").strip(), new.strip()
    return MODES[mode](existing, new, separator) if existing and new else existing or new


def needs_caption(mode: str, existing: str | None) -> bool:
    """Return whether an input with this existing caption needs a new one.

    Raises:
        ValueError: unknown mode.
    """
    _check_mode(mode)
    return mode != "skip" or not (existing or "").strip()


def read_caption(path: str | Path) -> str | None:
    """Read a caption file; return None if it does not exist or is empty.

    A link is not followed: in a folder of somebody else's, it could bring any file into the output.

    A byte order mark of UTF-8 or UTF-16 and surrounding whitespace are removed. Bytes that are not UTF-8 become
    surrogate escapes, as in Python's file names, so writing the text restores them.

    Raises:
        OSError: the file cannot be read, is a link or no regular file, or is too large for a caption.
    """
    try:
        with open_own(path) as file:  # called for every input, and most have no caption
            data = file.read(MAX_CAPTION_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(data) > MAX_CAPTION_BYTES:
        raise OSError(f"{Path(path).name} is larger than a caption may be ({MAX_CAPTION_BYTES:,} bytes)")
    return decode_caption(data)


def decode_caption(data: bytes) -> str | None:
    """Return the text of a caption file's bytes, as `read_caption` does."""
    found = (entry for entry in _BYTE_ORDER_MARKS if data.startswith(entry[0]))
    mark, encoding = next(found, (b"", "utf-8"))
    errors = "surrogateescape" if encoding == "utf-8" else "replace"
    return data[len(mark) :].decode(encoding, errors).strip() or None


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"existing captions: expected one of {', '.join(MODES)}; got {mode!r}")
