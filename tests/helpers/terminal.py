"""A `share4v` process on a pseudo-terminal, which a test types into and reads from."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SHARE4V = [sys.executable, "-m", "mindone_share4v"]
DEADLINE = 600.0  # seconds; only stops tests that hang


class Terminal:
    """Runs a `share4v` process on a pseudo-terminal.

    Args:
        argv: its arguments.
        cwd: its directory.
        program: runs in place of `share4v`.
    """

    def __init__(self, argv: Sequence[str], cwd: Path, program: Sequence[str] = SHARE4V) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execv(program[0], [*program, *argv])
        self.chunks: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.chunks).replace("\r\n", "\n")

    def read_until(self, done: Callable[[str], bool], until_end: bool = False) -> None:
        start_time = time.monotonic()
        while not done(self.text):
            assert time.monotonic() - start_time < DEADLINE, self.text
            if select.select([self.descriptor], [], [], 0.1)[0]:
                try:
                    self.chunks.append(os.read(self.descriptor, 4096).decode(errors="replace"))
                except OSError:  # on Linux: the other end is closed
                    assert until_end or done(self.text), self.text
                    return

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def interrupt_until(self, wanted: str, seconds: float) -> None:
        """Press Ctrl-C until the text appears: again after some seconds, as a person would.

        Python misses a Ctrl-C just before it waits for the next key.
        """
        pressed = 0.0

        def press(text: str) -> bool:
            nonlocal pressed
            if wanted not in text and pressed + seconds < time.monotonic():
                pressed = time.monotonic()
                self.type("\x03")
            return wanted in text

        self.read_until(press)

    def finish(self) -> int:
        self.read_until(lambda text: False, until_end=True)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
