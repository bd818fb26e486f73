"""The lines typed in earlier chats, which the arrow keys recall: a file that only its owner can read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..printing import print_error

MAX_LINES = 1000
NAME = "chat_history"
_ADVICE = "--no-history does without it"


@contextmanager
def history() -> Iterator[None]:
    """Read the history at the start of the `with` block, and add the lines typed in it at its end, also after Ctrl-C.

    Nothing happens without readline or without a home directory. A file that cannot be read or written is reported, and
    does not stop the chat.
    """
    path = _path()
    try:
        import readline
    except ImportError:
        path = None
    if path is None:
        yield
        return
    try:
        earlier = _read(path)
    except OSError as error:
        print_error(f"the questions of earlier chats cannot be read: {error}; {_ADVICE}")
        yield
        return
    readline.clear_history()
    for line in earlier:
        readline.add_history(line)
    try:
        yield
    finally:
        count = readline.get_current_history_length()
        typed = [readline.get_history_item(number) for number in range(len(earlier) + 1, count + 1)]
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
