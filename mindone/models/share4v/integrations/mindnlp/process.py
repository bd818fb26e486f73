"""Runs an object in a separate Python process, isolating this process from the libraries that the object imports.

Method calls go through a pipe, one at a time. The process ends when its owner closes the pipe or ends.
"""

from __future__ import annotations

import subprocess
import threading
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ...child_process import start_python


class WorkerError(RuntimeError):
    """A call raised an error in the other process, or the process has ended."""


class Worker:
    """Runs `module.main`, which calls `serve`, in a new process with this one's `sys.path` and environment.

    Args:
        module: full name of the module.
        title: name of the process in error messages.
    """

    def __init__(self, module: str, title: str) -> None:
        self.title = title
        self._connection, self._process = start_python(module)
        self._lock = threading.Lock()
        self._call_number = 0
        self.close = weakref.finalize(self, _end, self._connection, self._process)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object and return its result.

        The call may be interrupted; the next call then discards its answer.

        Raises:
            WorkerError: the method raised an error, which the message contains, or the process has ended.
        """
        with self._lock:
            self._call_number += 1
            try:
                self._send((self._call_number, method, arguments))
                while True:
                    number, failure, value = self._receive()
                    if number == self._call_number:
                        break
            except (EOFError, OSError) as error:
                self.close()
                raise WorkerError(
                    f"the process of {self.title} has ended (exit code {self._process.returncode}; -9 usually means "
                    "out of memory): see its last output on standard error, and load the model again"
                ) from error
        if failure is not None:
            raise WorkerError(f"error in the process of {self.title}: {failure}")
        return value

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except KeyboardInterrupt:
            self.close()  # the message was not written completely, so nothing after it could be read
            raise

    def _receive(self) -> Any:
        while not self._connection.poll(1):  # Ctrl-C here leaves the pipe intact
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
    except subprocess.TimeoutExpired:  # busy with a call
        process.kill()
        process.wait()


def serve(descriptor: int, make: Callable[[], Any]) -> None:
    """Answer the calls from a pipe with the object that `make` creates, until the other end is closed.

    The object is created on the first call, so that errors in `make` reach the caller.
    """
    created: list[Any] = []
    with Connection(descriptor) as connection:
        while True:
            try:
                number, method, arguments = connection.recv()
                connection.send(_answer(number, method, arguments, created, make))
            except (EOFError, OSError):
                return


def _answer(
    number: int, method: str, arguments: tuple[Any, ...], created: list[Any], make: Callable[[], Any]
) -> tuple[int, str | None, Any]:
    try:
        if not created:
            created.append(make())
        return number, None, getattr(created[0], method)(*arguments)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return number, f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})", None
