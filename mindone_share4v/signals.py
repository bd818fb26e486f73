"""What Ctrl-C and SIGTERM do to a command.

MindSpore may swallow a KeyboardInterrupt that is raised while it compiles, or abort on it, and it turns a Ctrl-C of
that time into a SIGTERM to its own process. So a command leaves at once, unless it has something to put in order.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # as shells count SIGINT
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def leave(number: int = 0, frame: Any = None) -> None:
    """End the process; what was printed is flushed line by line, so nothing is lost."""
    os.write(2, f"{message()}\n".encode())  # sys.stderr may be in the middle of a write
    os._exit(INTERRUPTED)


def unwind(number: int = 0, frame: Any = None) -> None:
    """Raise KeyboardInterrupt, so that files that are half written vanish."""
    raise KeyboardInterrupt


def message() -> str:
    """Return what is said on standard error; at a terminal it does not go on behind half a line."""
    return "\nshare4v: interrupted" if sys.stderr.isatty() else "share4v: interrupted"


@contextmanager
def on_interruption(act: Callable[[int, Any], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM call `act` for a while; other threads than the main one cannot, and nothing is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, act) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
