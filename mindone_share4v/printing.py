"""The only functions that print: what they print cannot act on a terminal, and contains no password of a URL."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import Any

from .status_line import STATUS

try:
    from mindone.models.share4v.display import json_printable, printable, redacted
except Exception:  # `mindone` or the MindSpore that it imports is missing or broken, in any way
    from .fallback_display import json_printable, printable, redacted


def print_text(text: str, end: str = "\n") -> None:
    """Print a result, such as a caption, on standard output, and flush it; line breaks and tabs are kept."""
    STATUS.clear()
    sys.stdout.write(printable(text) + end)
    sys.stdout.flush()


def print_error(message: str) -> None:
    """Print a message on standard error; URLs in it lose their passwords."""
    write_error(f"share4v: {message}")


def write_error(text: str) -> None:
    """Print text on standard error as `print_error` does, without the name of the program.

    If standard error cannot be written, for example to a full disk, the message is lost and the command continues: what
    it produces matters more.
    """
    STATUS.clear()
    with suppress(OSError):
        sys.stderr.write(printable(redacted(text)) + "\n")
        sys.stderr.flush()


def print_json(record: dict[str, Any]) -> None:
    """Print a record as one line of JSON, and flush it; its values are unchanged, but for passwords in URLs' names."""
    STATUS.clear()
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    sys.stdout.write(json_printable(json.dumps(record, ensure_ascii=encoding != "utf8")) + "\n")
    sys.stdout.flush()


def one_line(text: str, keep_indentation: bool = False) -> str:
    """Return `text` on one line: line breaks and tabs become spaces, other control characters become escapes."""
    indentation = text[: len(text) - len(text.lstrip(" "))] if keep_indentation else ""
    line = " ".join(part.strip() for part in text.replace("\t", "\n").splitlines() if part.strip())
    return printable(indentation + line, keep="")


class _LogFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        STATUS.clear()
        return printable(redacted(f"share4v: {super().format(record)}"))


@contextmanager
def filtered_messages() -> Iterator[None]:
    """Inside the `with` block, Python's warnings and log messages, which may quote a file, are filtered as well.

    Warnings of Pillow, about damaged metadata or unusual palettes, become notes of one line.
    """
    format_warning, handler = warnings.formatwarning, logging.lastResort  # the latter prints if nothing is configured
    formatter = handler.formatter if handler else None

    def filtered_warning(*arguments: Any, **keywords: Any) -> str:
        message, _, path = arguments[:3]
        if PurePath(path).parent.name == "PIL":
            STATUS.clear()
            return f"share4v: note on an image, from Pillow: {one_line(redacted(str(message)))}\n"
        return printable(redacted(format_warning(*arguments, **keywords)))

    warnings.formatwarning = filtered_warning
    if handler:
        handler.setFormatter(_LogFormatter())
    try:
        yield
    finally:
        warnings.formatwarning = format_warning
        if handler:
            handler.setFormatter(formatter)


def memory_message(error: MemoryError) -> str:
    """Return that there is not enough memory, and what to do about it."""
    detail = f" ({one_line(str(error))})" if str(error) else ""
    less = "use a smaller --dtype (int8, int4), a smaller --batch-size, or close other programs"
    return f"not enough memory{detail}: {less}"
