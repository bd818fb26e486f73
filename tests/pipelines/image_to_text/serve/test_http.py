"""Reading and sending over ASGI: limits of time and size, and clients that leave, without a server or a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from mindone.pipelines.image_to_text.serve import http
from mindone.pipelines.image_to_text.serve.errors import ApiError
from mindone.pipelines.image_to_text.serve.http import (
    ClientLeftError,
    read_body,
    send_json,
    send_stream,
    unless_left,
    watched,
)
from mindone.pipelines.image_to_text.serve.options import Limits

SCOPE: dict[str, Any] = {"type": "http", "headers": []}


def receiver(*messages: dict[str, Any]) -> Any:
    """An ASGI receive that returns these messages, and then waits forever."""
    remaining = list(messages)

    async def receive() -> dict[str, Any]:
        if remaining:
            return remaining.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts() -> None:
    assert asyncio.run(read_body(SCOPE, receiver(part(b"ab"), part(b"c", False)), Limits())) == b"abc"


def test_a_body_that_grows_beyond_the_limit() -> None:
    with pytest.raises(ApiError, match="larger than the limit of 5 bytes") as found:
        asyncio.run(read_body(SCOPE, receiver(part(b"abc"), part(b"def")), Limits(body_bytes=5)))
    assert found.value.status == 413


def test_a_body_that_does_not_come() -> None:
    with pytest.raises(ApiError, match=r"did not arrive within 0\.05 s") as found:
        asyncio.run(read_body(SCOPE, receiver(part(b"abc")), Limits(body_seconds=0.05)))
    assert found.value.status == 408


def test_a_body_that_comes_drop_by_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a place of the queue; a body that is large, and comes slowly but steadily, is received."""
    monkeypatch.setattr(http, "_BODY_START_SECONDS", 0.05)
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: 0.0))  # a pause of the machine counts nothing
    with pytest.raises(ApiError, match=r"only 3 bytes of the body arrived within 0\.05\d* s: send it") as found:
        asyncio.run(read_body(SCOPE, receiver(part(b"abc")), Limits()))
    assert found.value.status == 408

    parts = [part(bytes(2**20)), part(b"", False)]

    async def steady() -> Any:
        if len(parts) == 1:
            await asyncio.sleep(0.1)
        return parts.pop(0)

    assert len(asyncio.run(read_body(SCOPE, steady, Limits()))) == 2**20


def test_a_client_that_leaves_within_its_body() -> None:
    with pytest.raises(ClientLeftError):
        asyncio.run(read_body(SCOPE, receiver(part(b"abc"), {"type": "http.disconnect"}), Limits()))


def test_a_slow_reader_is_dropped() -> None:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 3:  # the buffers are full
            await asyncio.Event().wait()

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"piece"

    with pytest.raises(ClientLeftError):
        asyncio.run(send_stream(send, pieces(), "text/event-stream", {}, 0.05))
    assert len(sent) == 3


def test_work_ends_when_the_client_leaves_even_if_it_swallows_a_cancellation() -> None:
    """As `asyncio.wait_for` does before Python 3.12 if its result comes at the same time."""
    ended = []

    async def stubborn() -> None:
        try:
            for _ in range(3):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if len(ended) == 1:
                        raise
                    ended.append("swallowed")
        finally:
            ended.append("ended")

    async def run() -> None:
        async with watched(receiver({"type": "http.disconnect"})) as left:
            await unless_left(stubborn(), left)

    with pytest.raises(ClientLeftError):
        asyncio.run(run())
    assert ended == ["swallowed", "ended"]


def test_work_that_ends_first() -> None:
    async def work() -> int:
        return 3

    async def run() -> int:
        async with watched(receiver()) as left:
            return await unless_left(work(), left)

    assert asyncio.run(run()) == 3


def test_an_answer_has_its_length() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(send_json(send, 200, {"text": "\u4e2d"}, {"X-Request-Id": "1"}))
    headers = dict(sent[0]["headers"])
    assert int(headers[b"content-length"]) == len(sent[1]["body"]) == len('{"text":"\u4e2d"}'.encode())
    assert headers[b"x-request-id"] == b"1"
