"""The status line on a terminal: what a command is doing until its first output, and nothing anywhere else.

It imports nothing, so that the line appears before MindSpore is imported, which takes seconds.
"""

from __future__ import annotations

import sys

_ERASE_LINE = "\r\x1b[K"
_MAX_TEXT = 72  # characters; a line that wraps cannot be erased


class StatusLine:
    """One line on standard error, if that is a terminal; it is replaced by the next one and erased by output."""

    def __init__(self) -> None:
        self._is_shown = False

    def show(self, text: str) -> None:
        """Show a text in place of the last one; characters that could act on the terminal are escaped."""
        if not sys.stderr.isatty():
            return
        safe = "".join(character if character.isprintable() else "?" for character in text)
        shown = safe if len(safe) <= _MAX_TEXT else f"{safe[: _MAX_TEXT - 3]}..."
        self._write(f"{_ERASE_LINE}share4v: {shown}")
        self._is_shown = True

    def clear(self) -> None:
        """Erase the line, if one is shown."""
        if self._is_shown:
            self._write(_ERASE_LINE)
            self._is_shown = False

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:  # the terminal is gone; what the command prints reports that
            pass


STATUS = StatusLine()
