"""What the process of one replica does: it loads the model and captions the tasks that the job's process sends."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread

from ..inference.caption_cache import cache_name
from ..options import CaptioningSettings, ModelChoice
from ..state.tasks import Task


@dataclass(frozen=True, kw_only=True)
class ReplicaSetup:
    """The first message to a replica; all others are tasks.

    Attributes:
        choice, settings, state: as in `Executor`.
        number: of the replica, from 0.
    """

    choice: ModelChoice
    settings: CaptioningSettings
    state: Path
    number: int


class Inbox(Iterator[Task]):
    """The tasks that have arrived and were not taken; it ends when there is none, and goes on when others arrive.

    So the captioner never waits for a task while it has sequences to decode.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tasks: deque[Task] = deque()
        self._arrived = Event()
        Thread(target=self._receive, name="share4v-tasks", daemon=True).start()

    def __next__(self) -> Task:
        try:
            return self._tasks.popleft()
        except IndexError:
            raise StopIteration from None

    def wait(self) -> None:
        """Wait until there is a task."""
        while not self._tasks:
            self._arrived.wait()
            self._arrived.clear()

    def _receive(self) -> None:
        while True:
            try:
                self._tasks.append(self._connection.recv())
            except (EOFError, OSError):  # the job is done, or its process has ended: there is nothing to clean up here
                os._exit(0)
            self._arrived.set()


def main(descriptor: int) -> None:
    """Send a record for every task, or the error that ends the replica, until the pipe is closed."""
    with Connection(descriptor) as connection:
        setup: ReplicaSetup = connection.recv()
        try:
            _caption(connection, setup)
        except Exception as error:  # the job's process raises it
            connection.send(_sendable(error))


def _caption(connection: Connection, setup: ReplicaSetup) -> None:
    inbox = Inbox(connection)
    from ..inference.captioner import make_captioner  # imports MindSpore

    captioner = make_captioner(setup.choice, setup.settings, setup.state / cache_name(setup.number))
    while True:
        inbox.wait()
        for record in captioner.run(inbox):
            connection.send(record)


def _sendable(error: Exception) -> Exception:
    """Return the error, or one with its message if its class cannot be made again from what it stores."""
    try:
        copy(error)  # makes it as the pipe's other end would
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
