"""The checks that every request passes, and answers that a client does not read; without a server or a model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from mindone.pipelines.image_to_text.serve.errors import ApiError
from mindone.pipelines.image_to_text.serve.http import ClientLeftError, send_json, send_stream
from mindone.pipelines.image_to_text.serve.metrics import Metrics
from mindone.pipelines.image_to_text.serve.middleware import Guard
from mindone.pipelines.image_to_text.serve.options import Limits, ServerOptions

PUBLIC: dict[str, Any] = {"host": "0.0.0.0", "without_key": True}


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, 200, {"text": "secret"}, {})


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(400, "no")


def guard(app: Any = answer, log: Any = None, **options: Any) -> Guard:
    chosen = ServerOptions(**{"model_name": "m", **options})
    return Guard(app, chosen, Metrics("m", dict), log)


def status(made: Guard, **headers: str) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(made({"type": "http", "method": "GET", "path": "/v1/models", "headers": encoded}, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("options", [{}, PUBLIC], ids=["loopback", "public"])
def test_a_web_page_cannot_rebind_its_name(options: dict[str, Any]) -> None:
    made = guard(**options, allowed_hosts=("Captions.Example",))
    for host in ("evil.example", "evil.example:8000", "", "localhost.evil.example", "captions.example.evil.example"):
        assert status(made, host=host) == 403
        # The page's own origin is that of the Host header, which must not vouch for it.
        assert status(made, host=host, origin=f"http://{host}") == 403
    for host in ("localhost:8000", "LOCALHOST", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5:8000", "captions.example"):
        assert status(made, host=host) == 200
        assert status(made, host=host, origin="http://evil.example") == 403
    assert status(made, host="CAPTIONS.example.:443", origin="http://CAPTIONS.example.:443") == 200
    assert status(made) == 403


def test_names_that_are_allowed_in_vain() -> None:
    with pytest.raises(ValueError, match=r"allowed_hosts \(--allowed-host\) has no effect with a key"):
        ServerOptions(model_name="m", api_keys=("key",), allowed_hosts=("captions.example",))
    for name in ("captions.example:8000", "http://captions.example", "", "a b"):
        with pytest.raises(ValueError, match="must be names without a port or a path"):
            ServerOptions(model_name="m", allowed_hosts=(name,))


@pytest.mark.parametrize("app", [answer, refuse])
def test_an_answer_that_is_not_read_ends(app: Any) -> None:
    log: list[dict[str, Any]] = []
    made = guard(app, log.append, limits=Limits(write_seconds=0.05))

    async def send(message: Any) -> None:  # the buffers are full
        await asyncio.Event().wait()

    async def run() -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
        await asyncio.wait_for(made(scope, send, send), 60)

    asyncio.run(run())
    assert log[0]["client_left"]


def test_a_stream_that_is_read_slowly_ends() -> None:
    """Every piece is accepted in time, but not all of them."""
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)
        await asyncio.sleep(0.01)

    async def pieces() -> Any:
        for _ in range(2000):
            yield b"piece"

    with pytest.raises(ClientLeftError):
        asyncio.run(send_stream(send, pieces(), "text/event-stream", {}, 0.1))
    assert len(sent) < 2000
