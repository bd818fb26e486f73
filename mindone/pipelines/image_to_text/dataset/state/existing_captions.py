"""Existing captions: read as they are, and joined with new ones."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

KEPT_EXISTING = "kept existing"  # the note of a record whose caption was there before
MAX_CAPTION_BYTES = 2**20  # a larger file beside a picture is no caption
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# What becomes of an existing caption and a new one; both are there and not empty.
MODES: dict[str, Callable[[str, str, str], str]] = {
    "skip": lambda existing, new, separator: existing,
    "overwrite": lambda existing, new, separator: new,
    "append": lambda existing, new, separator: existing + separator + new,
    "prepend": lambda existing, new, separator: new + separator + existing,
}


def merge_captions(mode: str, existing: str | None, new: str, separator: str = " ") -> str:
    """Join an existing caption with a new one; white space around either, and an empty one, count for nothing.

    Args:
        mode: "skip" (the existing one stays), "overwrite", "append" (the new one comes last) or "prepend".
        existing: the caption that was there, or None.
        new: the caption that was made.
        separator: stands between the two.

    Raises:
        ValueError: the mode is not known.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.existing_captions import merge_captions
        >>> merge_captions("append", "A cat.", "It sleeps.")
        'A cat. It sleeps.'
        >>> merge_captions("skip", None, "It sleeps.")
        'It sleeps.'
    """
    if mode not in MODES:
        raise ValueError(f"existing captions can be treated as {', '.join(MODES)}; got {mode!r}")
    before, after = (existing or "").strip(), new.strip()
    return MODES[mode](before, after, separator) if before and after else before or after


def needs_caption(mode: str, existing: str | None) -> bool:
    """Tell whether an input with this existing caption is to be captioned at all.

    Raises:
        ValueError: the mode is not known.
    """
    merge_captions(mode, None, "")
    return mode != "skip" or not (existing or "").strip()


def read_caption(path: str | Path) -> str | None:
    """Read a caption's file; None where there is none, or nothing in it.

    A mark of UTF-8 or UTF-16 at its beginning is understood and left out, as is white space around the text. Bytes
    that are no UTF-8 are kept as Python keeps those of file names, so that writing the text gives them back.

    Raises:
        OSError: it cannot be read, or is far too large for a caption.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123  this is asked of every input, and most have none
            data = file.read(MAX_CAPTION_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(data) > MAX_CAPTION_BYTES:
        raise OSError(f"{Path(path).name} is larger than a caption may be ({MAX_CAPTION_BYTES:,} bytes)")
    return decode_caption(data)


def decode_caption(data: bytes) -> str | None:
    """Return the text of a caption's bytes, as `read_caption` does."""
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    errors = "surrogateescape" if encoding == "utf-8" else "replace"
    return data[len(mark) :].decode(encoding, errors).strip() or None
