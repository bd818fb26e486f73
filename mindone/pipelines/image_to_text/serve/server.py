"""Runs the server: binds the port, loads the model while /health answers, and ends in order on SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.routing import BaseRoute

from .app import make_app
from .connection import Connection
from .options import ServerOptions
from .service import Service

if TYPE_CHECKING:
    from mindone.pipelines.image_to_text.base import Pipeline

_HEADER_BYTES = 2**16  # of all headers of a request
_KEEP_ALIVE_SECONDS = 30
_CONNECTIONS = 1000
_END_SECONDS = 5.0  # for connections and the model's thread after the last request
_FORCED_SECONDS = 1.0  # for the answers to requests that the second signal ends


class PortInUseError(OSError):
    """Another program listens on the port."""


class ModelFailedError(Exception):
    """The model could not be loaded, or failed repeatedly; the cause is `__cause__`."""


def bind(options: ServerOptions) -> socket.socket:
    """Return a socket that listens on the host and port of the options.

    Raises:
        PortInUseError: another program uses the port.
        OSError: the host is not one of this machine's, or the port needs more rights.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                error.errno,
                f"port {options.port} of {options.host} is in use by another program, perhaps another server",
            ) from error
        raise


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    options: ServerOptions,
    load: Callable[[], Pipeline] | None,
    listener: socket.socket,
    image_cache_bytes: int,
    on_ready: Callable[[], None],
    log: Callable[[dict[str, Any]], None] | None,
    own_routes: Sequence[BaseRoute] = (),
) -> bool:
    """Serve until SIGTERM or SIGINT; then finish the running requests, and return whether the model's thread ended.

    Args:
        options: of the server.
        load: returns the pipeline; called in a thread of its own. None: there is no model, and nothing is generated.
        listener: what `bind` returned.
        image_cache_bytes: maximum size of the cached image features.
        on_ready: called when the model is loaded, or at once if there is none.
        log: called with a record for each request; None logs nothing.
        own_routes: further routes, which come before those of the service.

    Raises:
        ModelFailedError: the model could not be loaded, or failed repeatedly.
    """
    return asyncio.run(Run(options, load, image_cache_bytes, on_ready, log, own_routes).serve(listener))


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to us: on the first one it would refuse connections at once."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Run:
    """One run of the server; arguments as for `run`.

    Attributes:
        service: what is behind the routes.
        loop: the event loop, once `serve` runs.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        options: ServerOptions,
        load: Callable[[], Pipeline] | None,
        image_cache_bytes: int,
        on_ready: Callable[[], None],
        log: Callable[[dict[str, Any]], None] | None,
        own_routes: Sequence[BaseRoute] = (),
    ) -> None:
        self._options = options
        self._on_ready = on_ready
        self._failure: Exception | None = None
        self.service = Service(options, load, image_cache_bytes, self._report_ready, self._report_failure)
        config = uvicorn.Config(
            make_app(self.service, log, own_routes),
            http=partial(Connection, options.limits.idle_seconds),  # type: ignore[arg-type]
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_HEADER_BYTES,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=round(_END_SECONDS),
        )
        self._server = _Server(config)
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, listener: socket.socket) -> bool:
        """Serve until `stop` is called or a signal comes; return and errors as for `run`."""
        self.loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(RuntimeError, ValueError):  # not in the main thread: a test, which calls `stop` itself
                self.loop.add_signal_handler(number, self.stop)
        if self.service.model.status == "absent":
            self._on_ready()
        self.service.model.start()
        await self._server.serve(sockets=[listener])
        self.service.end()
        has_ended = await self.loop.run_in_executor(None, self.service.close, _END_SECONDS)
        if self._failure is not None:
            raise ModelFailedError(str(self._failure)) from self._failure
        return has_ended

    def stop(self) -> None:
        """Refuse new requests, finish the running ones, and end; the second call ends those as well."""
        if self._draining is not None:
            self.service.end()
            self._server.should_exit = True  # it waits until the answers are sent, but not long
            self.loop.call_later(_FORCED_SECONDS, self._force)
            return
        self.service.drain()
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self.service.admission.wait_idle(), self._options.limits.drain_seconds)
        except asyncio.TimeoutError:
            self.service.end()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.service.admission.wait_idle(), _END_SECONDS)
        self._server.should_exit = True

    def _force(self) -> None:
        self._server.force_exit = True

    # In the model's thread

    def _report_ready(self) -> None:
        self.loop.call_soon_threadsafe(self._on_ready)

    def _report_failure(self, error: Exception) -> None:
        self._failure = error

        def end() -> None:
            self.service.end()
            self._server.should_exit = True

        self.loop.call_soon_threadsafe(end)
