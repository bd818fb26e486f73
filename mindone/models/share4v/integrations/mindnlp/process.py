"""An object in a Python process of its own: what its libraries do to their process does not reach this one.

Method calls go over a pipe, one after the other. The process ends when its owner goes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

# `-c` puts another path first than the owner has.
BOOT = """
import json, sys; sys.path[:] = json.loads(sys.argv[1])
from importlib import import_module; import_module(sys.argv[2]).main(int(sys.argv[3]))
"""


class WorkerError(RuntimeError):
    """A call to another process failed there, or the process is gone."""


class Worker:
    """Runs `module.main`, which calls `serve`, in a new process with this one's `sys.path` and environment.

    Args:
        module: full name of the module.
        title: what messages call it.
    """

    def __init__(self, module: str, title: str) -> None:
        self.title = title
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, json.dumps(sys.path), module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                # MindSpore sets OMP_NUM_THREADS behind Python's back; this is the environment from before.
                env=dict(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what is printed there must not get among a caption's
                start_new_session=True,  # a terminal's Ctrl-C is the owner's alone
            )
        self._lock = threading.Lock()
        self._number = 0
        self.close = weakref.finalize(self, _end, self._connection, self._process)

    def call(self, method: str, *arguments: Any) -> Any:
        """Return what the object's method returns.

        May be interrupted: the answer that nobody waited for is skipped by the next call.

        Raises:
            WorkerError: the method raised an error, which the message holds, or the process is gone.
        """
        with self._lock:
            self._number += 1
            try:
                self._send((self._number, method, arguments))
                while True:
                    number, failure, value = self._receive()
                    if number == self._number:
                        break
            except (EOFError, OSError) as error:
                self.close()
                raise WorkerError(
                    f"the process of {self.title} is gone (exit code {self._process.returncode}; -9 is mostly for want "
                    "of memory): see what it said last on standard error, and load the model again"
                ) from error
        if failure is not None:
            raise WorkerError(f"{self.title}, in a process of its own: {failure}")
        return value

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except KeyboardInterrupt:
            self.close()  # half a message was written: nothing after it could be read
            raise

    def _receive(self) -> Any:
        while not self._connection.poll(1):  # here Ctrl-C does no harm
            pass
        try:
            return self._connection.recv()
        except KeyboardInterrupt:
            self.close()
            raise


def _end(connection: Any, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:  # in the middle of something
        process.kill()
        process.wait()


def serve(descriptor: int, make: Callable[[], Any]) -> None:
    """Answer the calls that arrive on a pipe with the object that `make` returns, until the other end is closed."""
    made: list[Any] = []
    with Connection(descriptor) as connection:
        while True:
            try:
                number, method, arguments = connection.recv()
                connection.send(_answer(number, method, arguments, made, make))
            except (EOFError, OSError):
                return


def _answer(
    number: int, method: str, arguments: tuple[Any, ...], made: list[Any], make: Callable[[], Any]
) -> tuple[int, str | None, Any]:
    try:
        if not made:
            made.append(make())
        return number, None, getattr(made[0], method)(*arguments)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return number, f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})", None
