"""Connections whose client does nothing end, whatever it has left undone; those with a running request do not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest
from helpers.serving import Live, serving, wait_until
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mindone.pipelines.image_to_text.serve import server as server_module
from mindone.pipelines.image_to_text.serve.connection import Connection
from mindone.pipelines.image_to_text.serve.options import Limits

MEGABYTES = 16  # more than the system buffers for a connection
HEAD = "GET {} HTTP/1.1\r\nHost: localhost\r\n"


class Server:
    """A server without a model, whose connections may be idle for 0.2 s.

    Attributes:
        live: the server.
        lost: one for each connection that has ended.
        is_slow: set while /slow has not answered.
        release: lets /slow answer.
    """

    def __init__(self) -> None:
        self.lost: list[Connection] = []
        self.is_slow, self.release = threading.Event(), threading.Event()
        self.live: Live

    def routes(self) -> list[Route]:
        return [Route("/slow", self.slow), Route("/large", self.large), Route("/stream", self.stream)]

    async def slow(self, request: Request) -> Response:
        self.is_slow.set()
        await asyncio.get_running_loop().run_in_executor(None, self.release.wait, 60)
        return Response("done")

    async def large(self, request: Request) -> Response:
        return Response(bytes(MEGABYTES * 2**20))

    async def stream(self, request: Request) -> Response:
        async def pieces() -> Any:
            for _ in range(MEGABYTES):
                yield bytes(2**20)

        return StreamingResponse(pieces())

    def connect(self) -> socket.socket:
        address = self.live.url.removeprefix("http://").split(":")
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(300)
        connection.connect((address[0], int(address[1])))
        return connection

    def ask_slow(self) -> socket.socket:
        """Return a connection whose request for /slow is running; one that was idle for 0.2 s before it is closed."""
        while True:
            connection = self.connect()
            own = connection.getsockname()
            with suppress(ConnectionError):
                connection.sendall((HEAD.format("/slow") + "\r\n").encode())
            wait_until(lambda own=own: self.is_slow.is_set() or self.has_lost(own))  # type: ignore[misc]
            if self.is_slow.is_set():
                return connection
            connection.close()

    def has_lost(self, client: Any) -> bool:
        """Return whether the connection of this client has ended."""
        return any(one.client == client for one in self.lost)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    lose = Connection.connection_lost

    def lost(self: Connection, exc: Exception | None) -> None:
        lose(self, exc)
        made.lost.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "connection_lost", lost)
        patch.setattr(server_module, "_KEEP_ALIVE_SECONDS", 600)  # uvicorn's own limit does not end these connections
        limits = Limits(idle_seconds=0.2, write_seconds=0.2)
        with serving(None, own_routes=made.routes(), limits=limits) as made.live:
            yield made
            made.release.set()


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "GET",
        HEAD.format("/health"),
        HEAD.format("/health") + "\r\nGET /hea",
        HEAD.format("/x") + "Content-Length: 9\r\n\r\n",
    ],
    ids=["nothing", "part of a line", "part of the headers", "part of the next request", "no body"],
)
def test_slowloris_headers_that_do_not_come(server: Server, sent: str) -> None:
    # Data that comes after the end of the connection are answered with a reset.
    with server.connect() as connection, suppress(ConnectionError):
        connection.sendall(sent.encode())
        while connection.recv(2**16):  # an answer, and then the end of the connection
            pass


@pytest.mark.parametrize("path", ["/large", "/stream"])
def test_a_client_that_does_not_read_its_answer_keeps_no_connection(server: Server, path: str) -> None:
    with server.connect() as connection:
        own = connection.getsockname()
        connection.sendall((HEAD.format(path) + "\r\n").encode())
        wait_until(lambda: server.has_lost(own))


class Clock:
    """The event loop of a connection, with a clock that the test moves."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._now = loop, loop.time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def time(self) -> float:
        return self._now

    def look(self, connection: Connection, seconds: float) -> None:
        """Move the clock, and let the connection look at what its client has read."""

        def move_and_look() -> None:
            self._now += seconds
            connection._look()
            looked.set_result(None)

        looked: Future[None] = Future()
        self._loop.call_soon_threadsafe(move_and_look)
        looked.result(300)


def test_a_client_that_reads_slowly_gets_its_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes far longer than a connection may be idle, but reads something between two looks at it."""
    server, size, idle_seconds = Server(), MEGABYTES * 2**20, 40.0
    made: list[Connection] = []
    connection_made = Connection.connection_made

    def make(self: Connection, transport: asyncio.Transport) -> None:
        self.loop = Clock(self.loop)  # type: ignore[assignment]
        connection_made(self, transport)
        made.append(self)

    monkeypatch.setattr(Connection, "connection_made", make)
    monkeypatch.setattr(Connection, "_look_later", lambda self: None)  # the test decides when
    limits = Limits(idle_seconds=idle_seconds)
    with serving(None, own_routes=server.routes(), limits=limits) as server.live, server.connect() as connection:
        connection.sendall((HEAD.format("/large") + "\r\n").encode())
        wait_until(lambda: made and made[0].transport.get_write_buffer_size())
        clock, unsent = made[0].loop, made[0].transport.get_write_buffer_size
        received, looks, before = 0, 0, unsent()
        while received < size:
            data = connection.recv(2**20)
            assert data, f"the connection ended after {received} bytes"
            received += len(data)
            if before - unsent() >= 2**16:
                clock.look(made[0], idle_seconds / 2)  # type: ignore[attr-defined]
                before, looks = made[0]._unsent, looks + 1
    assert looks > 10


def test_a_running_request_is_not_idle(server: Server) -> None:
    with server.ask_slow() as working, server.connect() as idle:
        assert idle.recv(100) == b""  # began later, and was closed
        with server.connect() as later:
            assert later.recv(100) == b""
        server.release.set()
        assert working.recv(100).startswith(b"HTTP/1.1 200 OK")
