"""A stub of an OpenAI-compatible server, which answers, refuses, hangs and talks nonsense as a test tells it."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

PROBE = 0x808080  # the grey of the question with which an endpoint is opened
HANG = "hang"
DROP = "drop"


@dataclass(frozen=True)
class Reply:
    """What the stub answers: a status, a body, and headers."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request as the stub got it: on its own monotonic clock, when it came and when it was answered."""

    number: int
    came: float
    body: dict[str, Any]
    headers: Mapping[str, str]
    image: bytes
    kind: str


Script = Callable[[int, int], Reply | str | None]


class Stub(ThreadingHTTPServer):
    """The server.

    Args:
        script: what to answer to the request for image `number`, the `count`-th for this image from 0: None for a
            caption, a Reply, HANG or DROP.

    Attributes:
        asked: all requests for captions, but those that open the endpoint.
        replied: for each status, when it was sent, on the same clock.
    """

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.asked: list[Asked] = []
        self.openings: list[Asked] = []
        self.replied: list[tuple[int, float]] = []
        self.counts: Counter[int] = Counter()
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.in_flight = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def numbers(self) -> list[int]:
        """Which images were asked about, in the order in which the requests came."""
        return [one.number for one in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that were killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        self._send(Reply(200, b'{"data": [{"id": "stub-1"}, {"id": "stub-2"}]}'))

    def do_POST(self) -> None:
        came = time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, kind = image_of(body)
        number = number_of(image)
        stub = self.server
        asked = Asked(number, came, body, dict(self.headers), image, kind)
        with stub.lock:
            count = stub.counts[number]
            stub.counts[number] += 1
            (stub.openings if number == PROBE else stub.asked).append(asked)
            stub.in_flight += 1
            stub.most = max(stub.most, stub.in_flight)
        try:
            action = stub.script(number, count)
            if action == HANG:
                stub.ended.wait()
            elif action == DROP:
                self.close_connection = True
            elif isinstance(action, Reply):
                self._send(action)
            else:
                self._send(Reply(200, completion(f"A picture of colour {number}.")))
        finally:
            with stub.lock:
                stub.in_flight -= 1

    def _send(self, reply: Reply) -> None:
        with suppress(ConnectionError):
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.server.replied.append((reply.status, time.monotonic()))
            self.wfile.write(reply.body)

    def log_message(self, *arguments: object) -> None:
        pass


def image_of(body: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the image of a request, and its media type."""
    uri = body["messages"][0]["content"][0]["image_url"]["url"]
    return base64.b64decode(uri.partition(",")[2]), uri.partition(";")[0].removeprefix("data:")


def number_of(image: bytes) -> int:
    """Return the colour of an image's first pixel, by which `helpers.jobs.png` numbers its images."""
    red, green, blue = Image.open(io.BytesIO(image)).convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return int(red) << 16 | int(green) << 8 | int(blue)


def completion(text: Any, **changes: Any) -> bytes:
    """The body of an answer; 11 tokens of the prompt and 7 of the answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return json.dumps({"model": "stub-1-2026", "choices": [{**choice, **changes}], "usage": usage}).encode()


def problem(message: str, code: str | None = None) -> bytes:
    """The body of an error."""
    return json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}}).encode()


@contextmanager
def stub(script: Script = lambda number, count: None) -> Iterator[Stub]:
    """Run a stub inside the `with` block."""
    server = Stub(script)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
