"""Reading requests and sending answers, within limits of size and time, while watching for the client to leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from starlette.types import Message, Receive, Scope, Send

from .errors import ApiError
from .json_text import dumps
from .options import Limits

Result = TypeVar("Result")


class ClientLeftError(Exception):
    """The client closed its connection, or stopped reading."""


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header of a request; None without it, or if it occurs more than once."""
    found = [value for key, value in scope["headers"] if key == name]
    return found[0].decode("latin-1") if len(found) == 1 else None


# A body has a place of the queue while it arrives, so it must not come drop by drop: after these seconds, it needs a
# second for so many bytes at most. A photograph of 5 MB over 1 Mbit/s is eight times as fast.
_BODY_START_SECONDS, _BODY_BYTES_PER_SECOND = 10.0, 2**14


async def read_body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: 413 if it is larger than the limit, 408 if it does not arrive in time, or so slowly that it only holds
            a place of the queue, 415 if it is compressed.
        ClientLeftError: the client left before it was complete.
    """
    if header(scope, b"content-encoding") not in (None, "identity"):
        raise ApiError(415, "the body must not be compressed: send it without Content-Encoding")
    stated = header(scope, b"content-length") or "0"
    if stated.isdecimal() and int(stated) > limits.body_bytes:
        raise _too_large(limits)
    body, is_complete, began = bytearray(), False, time.monotonic()
    while not is_complete:
        seconds = min(limits.body_seconds, _BODY_START_SECONDS + len(body) / _BODY_BYTES_PER_SECOND)
        try:
            message = await asyncio.wait_for(receive(), began + seconds - time.monotonic())
        except asyncio.TimeoutError:
            what = f"the body did not arrive within {limits.body_seconds:g} s"
            if seconds < limits.body_seconds:
                what = f"only {len(body):,} bytes of the body arrived within {seconds:.3g} s"
            raise ApiError(408, f"{what}: send it faster, or send smaller images") from None
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        body += message.get("body", b"")
        is_complete = not message.get("more_body", False)
        if len(body) > limits.body_bytes:
            raise _too_large(limits)
    return bytes(body)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(
        413, f"the body is larger than the limit of {limits.body_bytes:,} bytes: send fewer or smaller images"
    )


@asynccontextmanager
async def watched(receive: Receive) -> AsyncIterator[asyncio.Task[None]]:
    """Inside the `with` block, a task ends when the client leaves; the body must have been read."""

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.create_task(wait())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def unless_left(work: Awaitable[Result], left: asyncio.Task[None]) -> Result:
    """Return the result of `work`; give it up when the client leaves.

    Raises:
        ClientLeftError: the client left first.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        # More than once: before Python 3.12, `asyncio.wait_for` swallows a cancellation that comes with a result.
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.05)


def timed(send: Send, seconds: float) -> Send:
    """Return `send` with a limit of time for each message, after which it raises ClientLeftError."""

    async def send_in_time(message: Message) -> None:
        try:
            await asyncio.wait_for(send(message), seconds)
        except asyncio.TimeoutError:
            raise ClientLeftError from None

    return send_in_time


async def send_json(send: Send, status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    """Send a complete answer, with its length."""
    data = dumps(body)
    own = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
    await send(_start(status, own))
    await send({"type": "http.response.body", "body": data})


async def send_stream(
    send: Send, pieces: AsyncIterator[bytes], media_type: str, headers: Mapping[str, str], seconds: float
) -> None:
    """Send an answer piece by piece.

    Raises:
        ClientLeftError: the client did not accept all pieces within `seconds`.
    """

    async def send_all() -> None:
        await send(_start(200, {"Content-Type": media_type, "Cache-Control": "no-store", **headers}))
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    try:
        await asyncio.wait_for(send_all(), seconds)
    except asyncio.TimeoutError:
        raise ClientLeftError from None


def _start(status: int, headers: Mapping[str, str]) -> Message:
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}
