"""A record as a row of an output file, and its captions as a text file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..state.records import Record, printable
from .base import WriterOptions
from .finishing import OutputRecord

TOKEN_COUNTS = ("text_tokens", "uncut_tokens")  # in a job with token budgets


def output_row(record: OutputRecord, options: WriterOptions) -> dict[str, Any]:
    """Return a record's row in JSONL and Parquet; `caption` is the first of `captions`, or None for a failure.

    With named texts, the row has a column for each of them too.
    """
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
    if options.has_budgets:
        for name in TOKEN_COUNTS:
            row[name] = {fit: list(counts) for fit, counts in getattr(record, name).items()}
    row |= named_texts(record, options)
    return {**row, "seconds": record.seconds} if options.seconds else row


def named_texts(record: OutputRecord, options: WriterOptions) -> dict[str, str | None]:
    """Return the texts of a record by name; None for one that it lacks. Empty in a job without named texts."""
    return {
        name: record.captions[index] if index < len(record.captions) else None
        for index, name in enumerate(options.texts)
    }


def joined(captions: Sequence[str]) -> str:
    """Return captions as one text: a single caption unchanged, several captions on one line each."""
    return captions[0] if len(captions) == 1 else "\n".join(" ".join(caption.split()) for caption in captions)


def caption_files(record: Record) -> dict[str, bytes]:
    """Return the content of a record's text files by what their names have before the suffix: "", ".short".

    The file of the first text is the one that trainers read; without named texts it is the only one.
    """
    if not record.texts:
        return {"": caption_text(record.captions)}
    names = ("", *(f".{name}" for name in record.texts[1:]))
    return {name: caption_text([caption]) for name, caption in zip(names, record.captions, strict=False)}


def caption_text(captions: Sequence[str]) -> bytes:
    """Return the content of a text file, as `joined`.

    Bytes of an existing caption that are not UTF-8 are written unchanged.
    """
    text = joined(captions)
    try:
        return f"{text}\n".encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that came from JSON
        return f"{printable(text)}\n".encode()
