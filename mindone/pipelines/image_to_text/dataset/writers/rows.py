"""A record as a row of an output file, and its captions as a text file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..state.records import Record, printable
from .base import WriterOptions
from .finishing import OutputRecord

TOKEN_COUNTS = ("text_tokens", "uncut_tokens")  # in a job with token budgets


def output_row(record: OutputRecord, options: WriterOptions) -> dict[str, Any]:
    """Return a record's row in JSONL and Parquet; `caption` is the first of `captions`, or None for a failure."""
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
    if options.fit:
        for name in TOKEN_COUNTS:
            row[name] = {fit: list(counts) for fit, counts in getattr(record, name).items()}
    return {**row, "seconds": record.seconds} if options.seconds else row


def joined(captions: Sequence[str]) -> str:
    """Return captions as one text: a single caption unchanged, several captions on one line each."""
    return captions[0] if len(captions) == 1 else "\n".join(" ".join(caption.split()) for caption in captions)


def caption_text(record: Record) -> bytes:
    """Return the content of a record's text file, as `joined`.

    Bytes of an existing caption that are not UTF-8 are written unchanged.
    """
    text = joined(record.captions)
    try:
        return f"{text}\n".encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that came from JSON
        return f"{printable(text)}\n".encode()
