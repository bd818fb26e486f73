"""A record as a row of an output, and a caption as a text file."""

from __future__ import annotations

from typing import Any

from ..state.records import Record, printable


def output_row(record: Record, seconds: bool = False) -> dict[str, Any]:
    """Return what JSONL and Parquet say of a record; `caption` is the first of `captions`, or None for a failure."""
    row: dict[str, Any] = {
        "key": record.key,
        "source": record.source,
        "caption": record.captions[0] if record.captions else None,
        "captions": list(record.captions),
        "error": record.error,
        "model": record.model,
        "dtype": record.dtype,
        "prompts": list(record.prompts),
        "settings": dict(record.settings),
        "sha256": record.sha256,
        "tokens": list(record.tokens),
        "finish_reasons": list(record.finish_reasons),
        "notes": list(record.notes),
        "width": record.width,
        "height": record.height,
        "columns": dict(record.columns),
    }
    return {**row, "seconds": record.seconds} if seconds else row


def caption_text(record: Record) -> bytes:
    """Return the text file of a record's captions: one as it is, several on a line each.

    Bytes of an existing caption that are no UTF-8 come out as they went in.
    """
    captions = record.captions
    text = captions[0] if len(captions) == 1 else "\n".join(" ".join(one.split()) for one in captions)
    try:
        return f"{text}\n".encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character that came from JSON
        return f"{printable(text)}\n".encode()
