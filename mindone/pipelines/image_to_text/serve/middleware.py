"""What every request passes: its id, the checks of host, origin and key, the access log, and errors as answers."""

from __future__ import annotations

import hashlib
import hmac
import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .anthropic_api import anthropic_error
from .errors import ApiError, no_memory, openai_error
from .http import ClientLeftError, header, send_json, timed
from .metrics import Metrics
from .ollama_api import ollama_error
from .options import ServerOptions, is_address

_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
# The page has nothing of this server's users in it; it is where people enter their key.
PATHS_WITHOUT_KEY = ("/health", "/")
# Pages of other origins cannot show what this server sends; they would learn the size of a reviewed image.
_SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
_log = logging.getLogger(__name__)


def error_body(path: str, error: ApiError) -> Mapping[str, Any]:
    """Return the body of an error in the format of the API that a path belongs to."""
    if "/messages" in path:
        return anthropic_error(error)
    return ollama_error(error) if path.startswith("/api/") else openai_error(error)


class Guard:
    """The outermost ASGI application.

    Args:
        app: what answers requests that pass the checks.
        options: keys, hosts and origins.
        metrics: counts the responses.
        log: called with a record for each request; None logs nothing.
    """

    def __init__(
        self, app: ASGIApp, options: ServerOptions, metrics: Metrics, log: Callable[[dict[str, Any]], None] | None
    ) -> None:
        self._app = app
        self._options = options
        self._metrics = metrics
        self._log = log
        self._keys = [_digest(key.encode()) for key in options.api_keys]
        own = (*_OWN_NAMES, socket.gethostname(), options.host, *options.allowed_hosts)
        self._hosts = {name.lower().rstrip(".") for name in own}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        response = _Response(timed(send, self._options.limits.write_seconds))
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = uuid4().hex
        scope["app"] = self  # so that the router raises its errors
        began = time.perf_counter()
        try:
            await self._respond(scope, receive, response)
        except ClientLeftError:
            state["client_left"] = True
        finally:
            if response.status is not None:
                self._metrics.responded(response.status)
            self._write_log(scope, response, state, time.perf_counter() - began)

    async def _respond(self, scope: Scope, receive: Receive, response: _Response) -> None:
        """Send the answer, or the error that the request gets.

        Raises:
            ClientLeftError: the client left, or does not accept what is sent.
        """
        try:
            self._check(scope)
            await self._app(scope, receive, response.send)
        except ApiError as error:
            await self._send_error(scope, response, error)
        except HTTPException as error:  # of the router
            await self._send_error(scope, response, _routing_error(error, scope))
        except ClientLeftError:
            raise
        except MemoryError as error:
            _log.error("request %s got no memory: %s", scope["state"]["request_id"], error)
            await self._send_error(scope, response, no_memory())
        except Exception:
            _log.exception("request %s failed", scope["state"]["request_id"])
            if response.status is None:
                failure = ApiError(500, "an error in the server; its log says more", code="internal_error")
                await self._send_error(scope, response, failure)

    def _check(self, scope: Scope) -> None:
        """Check host, origin and key.

        Raises:
            ApiError: 401 or 403.
        """
        if not self._keys:
            self._check_host(scope)
        origin = header(scope, b"origin")
        if origin is not None and not self._keys and not self._is_own(scope, origin):
            raise ApiError(403, "web pages of other origins may not use this server: start it with --cors-origin")
        if self._keys and scope["path"] not in PATHS_WITHOUT_KEY:
            self._check_key(scope)

    def _check_host(self, scope: Scope) -> None:
        """Refuse the names of others: a web page whose name leads to this server (DNS rebinding) sends its own name.

        An IP address cannot be rebound, so every address is accepted: behind a NAT the server does not know its own.
        """
        host = (header(scope, b"host") or "").rpartition("@")[2]
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower().rstrip(".") not in self._hosts and not is_address(name):
            raise ApiError(
                403, "the Host header names another host: use its address, or start with --allowed-host NAME"
            )

    def _is_own(self, scope: Scope, origin: str) -> bool:
        own = header(scope, b"host")
        return origin in self._options.cors_origins or origin in (f"http://{own}", f"https://{own}")

    def _check_key(self, scope: Scope) -> None:
        scheme, _, token = (header(scope, b"authorization") or "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else header(scope, b"x-api-key")
        digest = _digest((given or "").encode("latin-1"))
        # Every key is compared, and digests have one length: time tells nothing about how close a key was.
        is_known = False
        for key in self._keys:
            is_known |= hmac.compare_digest(digest, key)
        if not is_known:
            reason = "is missing: send it as Authorization: Bearer KEY" if given is None else "is wrong"
            raise ApiError(401, f"the API key {reason}", code="invalid_api_key")

    async def _send_error(self, scope: Scope, response: _Response, error: ApiError) -> None:
        if response.status is not None:  # part of an answer has been sent
            _log.error("request %s failed after its answer had begun: %s", scope["state"]["request_id"], error)
            return
        headers = {"X-Request-Id": scope["state"]["request_id"], **error.headers}
        if error.status == 413 or error.status == 408:  # the rest of the body was not read
            headers["Connection"] = "close"
        await send_json(response.send, error.status, error_body(scope["path"], error), headers)

    def _write_log(self, scope: Scope, response: _Response, state: Mapping[str, Any], seconds: float) -> None:
        if self._log is None:
            return
        client = scope.get("client")
        record = {
            "time": time.time(),
            "request_id": state["request_id"],
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"],
            "status": response.status,
            "bytes": response.size,
            "seconds": round(seconds, 6),
        }
        optional = (
            "client_request_id",
            "stream",
            "client_left",
            "prompt_tokens",
            "completion_tokens",
            "request",
            "answers",
        )
        self._log(record | {name: state[name] for name in optional if state.get(name) is not None})


class _Response:
    """Passes an answer on, adds headers, and notes its status and size."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.size = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [(name.lower().encode(), value.encode()) for name, value in _SECURITY_HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        elif message["type"] == "http.response.body":
            self.size += len(message.get("body", b""))
        await self._send(message)


def _routing_error(error: HTTPException, scope: Scope) -> ApiError:
    if error.status_code == 405:
        return ApiError(405, f"{scope['path'][:100]} does not accept {scope['method']}; /docs lists the routes")
    return ApiError(404, f"there is no route {scope['path'][:100]}; /docs lists them")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
