"""Connections whose client does nothing end, whatever it has left undone; those with a running request do not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.serving import Live, serving, wait_until
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mindone.pipelines.image_to_text.serve.connection import Connection
from mindone.pipelines.image_to_text.serve.options import Limits

MEGABYTES = 16  # more than the system buffers for a connection
HEAD = "GET {} HTTP/1.1\r\nHost: localhost\r\n"


class Server:
    """A server without a model, whose connections may be idle for 0.2 s.

    Attributes:
        live: the server.
        lost: one for each connection that has ended.
        release: lets /slow answer.
    """

    def __init__(self) -> None:
        self.lost: list[Connection] = []
        self.release = threading.Event()
        self.live: Live

    def routes(self) -> list[Route]:
        return [Route("/slow", self.slow), Route("/large", self.large), Route("/stream", self.stream)]

    async def slow(self, request: Request) -> Response:
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
        connection.settimeout(15)  # less than uvicorn's own limit between requests
        connection.connect((address[0], int(address[1])))
        return connection


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    lose = Connection.connection_lost

    def lost(self: Connection, exc: Exception | None) -> None:
        lose(self, exc)
        made.lost.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "connection_lost", lost)
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
    with server.connect() as connection:
        connection.sendall(sent.encode())
        while connection.recv(2**16):  # an answer, and then the end of the connection
            pass


@pytest.mark.parametrize("path", ["/large", "/stream"])
def test_a_client_that_does_not_read_its_answer_keeps_no_connection(server: Server, path: str) -> None:
    with server.connect() as connection:
        own = connection.getsockname()
        connection.sendall((HEAD.format(path) + "\r\n").encode())
        wait_until(lambda: any(one.client == own for one in server.lost))


def test_a_client_that_reads_slowly_gets_its_whole_answer() -> None:
    """It takes twice as long as a connection may be idle."""
    server, seconds, size = Server(), 3.0, MEGABYTES * 2**20
    limits = Limits(idle_seconds=seconds / 2)
    with serving(None, own_routes=server.routes(), limits=limits) as server.live, server.connect() as connection:
        connection.sendall((HEAD.format("/large") + "\r\n").encode())
        received = 0
        while received < size:
            data = connection.recv(2**20)
            assert data, f"the connection ended after {received} bytes"
            received += len(data)
            time.sleep(len(data) / size * seconds)


def test_a_running_request_is_not_idle(server: Server) -> None:
    with server.connect() as working, server.connect() as idle:
        working.sendall((HEAD.format("/slow") + "\r\n").encode())
        assert idle.recv(100) == b""  # began at the same time, and was closed
        with server.connect() as later:
            assert later.recv(100) == b""
        server.release.set()
        assert working.recv(100).startswith(b"HTTP/1.1 200 OK")
