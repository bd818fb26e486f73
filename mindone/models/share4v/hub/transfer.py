"""HTTP requests with a bounded total duration and size, however slowly the server answers.

A socket timeout only limits the wait for the next byte: a server that sends one byte per minute could block a client
for months. Here a watchdog thread shuts the connection down after the deadline, whether it is connecting, waiting for
headers or reading the body.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ..display import redacted
from .errors import HubError

TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces
JSON_SECONDS = 60.0
PIECE = 64 * 1024  # bytes; a broken connection loses at most this much


class TooSlowError(HubError):
    """A download was slower than the minimum rate."""


class Pace:
    """The deadline of a download, which moves as data arrives.

    The first deadline is `seconds` from now. Each byte moves it by 1 / `rate` seconds, to at most `seconds_ahead` from
    now: a large file may take days on a slow line, but a server that stops sending is given up after `seconds_ahead`.

    Args:
        seconds: seconds until the first deadline.
        rate: minimum rate in bytes per second; None for a fixed deadline.
        seconds_ahead: maximum number of seconds between now and the deadline.
    """

    def __init__(self, seconds: float, rate: float | None = None, seconds_ahead: float = 600.0) -> None:
        self._deadline = time.monotonic() + seconds
        self._rate = rate
        self._seconds_ahead = seconds_ahead
        self._start = time.monotonic()
        self._received = 0

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, negative after it."""
        return self._deadline - time.monotonic()

    def add(self, size: int) -> None:
        """Count bytes that arrived."""
        self._received += size
        if self._rate is not None:
            later = max(self._deadline, min(time.monotonic() + self._seconds_ahead, self._deadline + size / self._rate))
            self._deadline = later

    def error(self, url: str) -> TooSlowError:
        """Return the error for a missed deadline."""
        seconds = time.monotonic() - self._start
        return TooSlowError(
            f"{redacted(url)}: the download is too slow: {self._received:,} bytes in {seconds:.0f} s; try again later, "
            "or download the file yourself"
        )


class Transfer:
    """A response whose body is read in pieces.

    Attributes:
        response: status and headers; read the body only through `pieces`.
    """

    def __init__(self, response: requests.Response, url: str, pace: Pace, watchdog: _Watchdog) -> None:
        self.response = response
        self._url = url
        self._pace = pace
        self._watchdog = watchdog

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in pieces.

        Raises:
            TooSlowError: the deadline has passed.
            requests.RequestException: the connection was lost.
        """
        for piece in self.response.iter_content(PIECE):
            self._pace.add(len(piece))
            if self._watchdog.expired:  # a body without a stated length ends with the connection as if complete
                break
            yield piece
        if self._watchdog.expired:
            raise self._pace.error(self._url)

    def read(self, limit: int) -> bytes:
        """Return the complete body.

        Raises:
            HubError: it has more than `limit` bytes.
        """
        data = bytearray()
        for piece in self.pieces():
            data += piece
            if len(data) > limit:
                raise HubError(f"{redacted(self._url)} sends more than {limit:,} bytes")
        return bytes(data)


@contextmanager
def open_url(
    url: str, pace: Pace, headers: Mapping[str, str] | None = None, timeout: tuple[float, float] = TIMEOUT
) -> Iterator[Transfer]:
    """Send a GET request and yield the response; everything must happen within `pace`.

    Raises:
        TooSlowError: the deadline has passed.
        requests.RequestException: the request failed, or the URL is invalid.
    """
    with _Watchdog(pace) as watchdog, _session(watchdog.watch) as session:
        try:
            with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                yield Transfer(response, url, pace, watchdog)
        except (requests.RequestException, OSError) as error:
            if watchdog.expired and not isinstance(error, TooSlowError):
                raise pace.error(url) from error
            raise


def fetch_json(
    url: str, limit: int, headers: Mapping[str, str] | None = None, absent: frozenset[int] = frozenset()
) -> Any:
    """Return the JSON at a URL; None if the status is in `absent`.

    Raises:
        HubError: the request failed, took longer than JSON_SECONDS or has more than `limit` bytes, or is not JSON.
    """
    shown = redacted(url)
    try:
        with open_url(url, Pace(JSON_SECONDS), headers) as transfer:
            status = transfer.response.status_code
            if status in absent:
                return None
            if status != 200:
                raise HubError(f"{shown} answered with HTTP status {status}")
            body = transfer.read(limit)
    except requests.RequestException as error:
        raise HubError(f"{shown}: {type(error).__name__}: {redacted(str(error))}") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HubError(f"{shown} is not JSON: {type(error).__name__}: {error}") from None


class _Watchdog:
    """Shuts down the watched connections when the deadline has passed."""

    def __init__(self, pace: Pace) -> None:
        self.expired = False
        self._pace = pace
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="share4v-download-deadline", daemon=True)

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
        for connection in self._sockets:
            connection.close()

    def watch(self, connection: socket.socket) -> None:
        """Watch a connection, through a duplicate of its descriptor, which stays valid when TLS wraps the original."""
        with self._lock:
            self._sockets.append(connection.dup())
        if self.expired:
            self._shut_down()

    def _run(self) -> None:
        while not self._end.wait(max(self._pace.remaining, 0.01)):
            if self._pace.remaining <= 0:
                self.expired = True
                self._shut_down()
                return

    def _shut_down(self) -> None:
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _session(on_connect: Callable[[socket.socket], None]) -> requests.Session:
    """Return a session that calls `on_connect` with every new connection."""

    class Http(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            connection = super()._new_conn()
            on_connect(connection)
            return connection

    class Https(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            connection = super()._new_conn()
            on_connect(connection)
            return connection

    pools = {
        "http": type("HttpPool", (HTTPConnectionPool,), {"ConnectionCls": Http}),
        "https": type("HttpsPool", (HTTPSConnectionPool,), {"ConnectionCls": Https}),
    }

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
            super().init_poolmanager(*arguments, **keywords)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, *arguments: Any, **keywords: Any) -> Any:
            manager = super().proxy_manager_for(*arguments, **keywords)
            manager.pool_classes_by_scheme = pools
            return manager

    session = requests.Session()
    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    return session
