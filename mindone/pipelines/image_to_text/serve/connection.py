"""Connections of the HTTP server: one that has nothing to do for too long is closed."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_LOOKS = 4  # at an idle connection, before it is closed
_LEAST_READ = 2**16  # bytes of an answer that a client takes between two looks, at least


class Connection(H11Protocol):
    """uvicorn's protocol, whose connections end if their client neither sends a request nor takes its answer.

    uvicorn itself waits without limit for the first request, for the rest of headers that have begun, and for a client
    that stopped reading its last answer. It counts such connections, so a few hundred of them, from anybody who can
    connect, would make it refuse all requests.

    Args:
        idle_seconds: how long a connection may be without a running request, while its client does not read the last
            answer.
        config, server_state, app_state, _loop: as uvicorn's server gives them.
    """

    def __init__(
        self,
        idle_seconds: float,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._idle_seconds = idle_seconds
        self._idle_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0  # bytes of answers at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count the time."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._look_later()

    def on_response_complete(self) -> None:
        """Count the time from the end of an answer."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._timer = self.loop.call_later(self._idle_seconds / _LOOKS, self._look)

    def _look(self) -> None:
        # A request that its handler gave up leaves a transport that is closing, which waits for the client to read.
        is_working = self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        is_read = before - self._unsent >= min(before, _LEAST_READ) > 0
        if is_working or is_read:
            self._idle_since = self.loop.time()
        elif self.loop.time() - self._idle_since >= self._idle_seconds:
            self.transport.abort()  # `close` would wait until everything has been sent
            return
        self._look_later()
