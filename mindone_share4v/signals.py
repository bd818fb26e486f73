"""What Ctrl-C (SIGINT) and SIGTERM do while a command runs.

MindSpore can swallow a KeyboardInterrupt that is raised while it compiles a graph, or abort because of it, and it turns
a Ctrl-C during compilation into a SIGTERM to its own process. Therefore a command exits at once (`exit_at_once`),
except where it must clean up first (`raise_interrupt`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # exit status, as shells report SIGINT
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_at_once(number: int = 0, frame: Any = None) -> None:
    """Signal handler: end the process; commands flush every line that they print, so no output is lost."""
    os.write(2, f"{interrupted_message()}\n".encode())  # not print: the signal may arrive inside a write to stderr
    os._exit(INTERRUPTED)


def raise_interrupt(number: int = 0, frame: Any = None) -> None:
    """Signal handler: raise KeyboardInterrupt, so that the command can clean up, such as remove unfinished files."""
    raise KeyboardInterrupt


def interrupted_message() -> str:
    """Return the message for standard error; on a terminal it starts on a new line."""
    return "\nshare4v: interrupted" if sys.stderr.isatty() else "share4v: interrupted"


@contextmanager
def signal_handler(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM with `handler` inside the `with` block; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():  # Python allows no other thread to set handlers
        yield
        return
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old_handler in previous.items():
            signal.signal(number, old_handler)
