"""Questions of `share4v chat`: lines of a pipe, or typed lines with editing, history and several lines per question."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext, suppress

from ..printing import write_error
from ..signals import signal_handler
from .chat_history import history, note_nothing

PROMPT, NEXT_LINE = "> ", "... "
_BLOCK = '"""'  # starts and ends a question of several lines


def questions(interactive: bool, keeps_history: bool = False) -> Generator[str, None, None]:
    """Yield the questions and chat commands, without surrounding white space; blank lines are left out.

    Args:
        interactive: whether a person types them: then a line that ends in a backslash continues on the next one,
            lines between two triple quotes are one question, and Ctrl-C discards what was typed.
        keeps_history: whether a person can recall the lines of earlier chats, and of this one in later chats.

    Raises:
        KeyboardInterrupt: Ctrl-C on an empty line.
    """
    with history() if interactive and keeps_history else nullcontext(note_nothing) as note:
        lines = _typed_questions(note) if interactive else iter(sys.stdin)
        yield from (line.strip() for line in lines if line.strip())


def _typed_questions(note: Callable[[str], None]) -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and a history)
    with suppress(EOFError):
        while True:
            try:
                yield _typed_question(note)
            except _DiscardedError:
                continue


class _DiscardedError(Exception):
    """Ctrl-C was pressed on a question that was being typed."""


def _typed_question(note: Callable[[str], None]) -> str:
    """Read one question, and call `note` with each of its lines.

    Raises:
        EOFError: end of the input, before the first line.
        _DiscardedError, KeyboardInterrupt: Ctrl-C, after something was typed or not.
    """
    lines = [_typed_line(PROMPT, note, is_first=True)]
    if lines[0].strip().startswith(_BLOCK):
        lines[0] = lines[0].strip().removeprefix(_BLOCK)
        while not lines[-1].rstrip().endswith(_BLOCK):
            lines.append(_typed_line(NEXT_LINE, note))
        lines[-1] = lines[-1].rstrip().removesuffix(_BLOCK)
    else:
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1].removesuffix("\\")
            lines.append(_typed_line(NEXT_LINE, note))
    return "\n".join(lines)


def _typed_line(prompt: str, note: Callable[[str], None], is_first: bool = False) -> str:
    try:
        with signal_handler(signal.default_int_handler):  # so that readline restores the terminal
            line = input(prompt if sys.stdout.isatty() else "")
        note(line)
        return line
    except EOFError:
        if is_first:
            raise
        return _BLOCK  # Ctrl-D ends a question of several lines
    except KeyboardInterrupt:
        if is_first and not _typed_text():
            raise
        write_error("\nshare4v: discarded; Ctrl-C on an empty line, Ctrl-D or /quit leave the chat")
        raise _DiscardedError from None


def _typed_text() -> str:
    """Return what was typed on the current line; without readline, the terminal has discarded it already."""
    with suppress(ImportError):
        import readline

        return readline.get_line_buffer()
    return ""
