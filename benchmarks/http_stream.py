"""One streamed request of OpenAI's API, over asyncio's own sockets, so that the client takes little time itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answer:
    """What came of a request.

    Attributes:
        status: of HTTP.
        sent: `time.perf_counter()` when the request was sent.
        pieces: the same, when each piece of text arrived.
        ended: the same, when the answer was complete.
        tokens: new tokens, from `usage` if the server sends it, else the number of pieces.
        prompt_tokens: tokens of the prompt, from `usage`; 0 if the server does not send it.
        timings: the server's own, if it sends them; in milliseconds.
        error: what the server says if the status is not 200.
    """

    status: int = 0
    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    error: str = ""


async def ask(
    base_url: str, body: dict[str, Any], key: str | None = None, path: str = "/v1/chat/completions"
) -> Answer:
    """Send a request with `stream` and return its times.

    Raises:
        OSError: the server cannot be reached, or closed the connection.
    """
    target = urlsplit(base_url)
    port = target.port or 80
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = [f"POST {target.path.rstrip('/')}{path} HTTP/1.1", f"Host: {target.hostname}:{port}", "Connection: close"]
    head += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    head += [f"Authorization: Bearer {key}"] if key else []
    answer = Answer()
    reader, writer = await asyncio.open_connection(target.hostname, port, limit=2**24)
    try:
        answer.sent = time.perf_counter()
        writer.write("\r\n".join([*head, "", ""]).encode() + data)
        await writer.drain()
        status = (await reader.readline()).split()
        if len(status) < 2:
            raise ConnectionResetError("the server closed the connection without an answer")
        answer.status = int(status[1])
        is_chunked = False
        while (line := (await reader.readline()).strip().lower()) != b"":
            is_chunked = is_chunked or line == b"transfer-encoding: chunked"
        if answer.status != 200:
            answer.error = (await reader.read()).decode("utf-8", "replace")[:300]
        else:
            async for event in _events(reader, is_chunked):
                _note(answer, event)
        answer.ended = time.perf_counter()
    finally:
        writer.close()
    answer.tokens = answer.tokens or len(answer.pieces)
    return answer


async def _events(reader: asyncio.StreamReader, is_chunked: bool) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of the events of a stream."""
    buffer = b""
    while True:
        if is_chunked:
            size = int((await reader.readline()).strip() or b"0", 16)
            data = await reader.readexactly(size + 2) if size else b""
        else:
            data = await reader.read(2**16)
        if not data:
            return
        buffer += data[:-2] if is_chunked else data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield json.loads(line[len(b"data: ") :])


def _note(answer: Answer, event: dict[str, Any]) -> None:
    if "error" in event:
        answer.error = str(event["error"])[:300]
    for choice in event.get("choices", ()):
        if choice.get("delta", choice).get("content") or choice.get("text"):
            answer.pieces.append(time.perf_counter())
    usage = event.get("usage") or {}
    answer.tokens = usage.get("completion_tokens", answer.tokens)
    answer.prompt_tokens = usage.get("prompt_tokens", answer.prompt_tokens)
    answer.timings = event.get("timings") or answer.timings
