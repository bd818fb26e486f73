"""The lines typed in earlier chats, which the arrow keys recall: a file that only its owner can read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..printing import print_error

MAX_LINES = 1000
NAME = "chat_history"
_ADVICE = "--no-history does without it"


def note_nothing(line: str) -> None:
    """Take a typed line that is not to be stored."""


@contextmanager
def history() -> Iterator[Callable[[str], None]]:
    """Read the history at the start of the `with` block, and add the lines typed in it at its end, also after Ctrl-C.

    The block gets a function to call with every typed line. How many lines the arrow keys recall is the person's
    setting (`history-size` in their inputrc); the file has MAX_LINES regardless, because another chat may run with
    another setting. Only with a size of 0, which asks for no history, nothing is added.

    Nothing happens without readline or without a home directory. A file that cannot be read or written is reported, and
    does not stop the chat.
    """
    path = _path()
    try:
        import readline
    except ImportError:
        path = None
    if path is None:
        yield note_nothing
        return
    try:
        earlier = _read(path)
    except OSError as error:
        print_error(f"the questions of earlier chats cannot be read: {error}; {_ADVICE}")
        yield note_nothing
        return
    readline.clear_history()
    readline.add_history("probe")
    is_wanted = readline.get_current_history_length() > 0
    readline.clear_history()
    for line in earlier:
        readline.add_history(line)
    typed: list[str] = []

    def note(line: str) -> None:
        # As readline does. Its own list is no use here: it drops lines, and its numbers then begin with another one.
        if is_wanted and line and line != next(reversed(typed or earlier), None):
            typed.append(line)

    try:
        yield note
    finally:
        try:
            if typed:
                _write(path, [*_read(path), *typed])  # another chat may have written meanwhile
        except OSError as error:
            print_error(f"the questions of this chat cannot be stored: {error}; {_ADVICE}")


def _path() -> Path | None:
    from mindone.models.share4v.hub.cache import cache_root

    with suppress(OSError):
        return cache_root() / NAME
    return None


def _read(path: Path) -> list[str]:
    """Return the last lines of the file; none if it does not exist."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.split("\n") if line][-MAX_LINES:]


def _write(path: Path, lines: list[str]) -> None:
    """Replace the file by one that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(partial, flags, 0o600), "w", encoding="utf-8", errors="replace") as file:
            file.write("".join(f"{line}\n" for line in lines[-MAX_LINES:]))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
