"""The ASGI application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp

from .middleware import Guard
from .routes import routes
from .service import Service


def make_app(
    service: Service, log: Callable[[dict[str, Any]], None] | None = None, own_routes: Sequence[BaseRoute] = ()
) -> ASGIApp:
    """Return the application of a service.

    Args:
        service: what it serves; its model may still be loading.
        log: called with a record for each request.
        own_routes: further routes, which come before those of the service.
    """
    router = Router([*own_routes, *routes(service)], redirect_slashes=False)
    guard = Guard(router, service.options, service.metrics, log)
    origins = service.options.cors_origins
    if not origins:
        return guard
    return CORSMiddleware(
        guard,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id"],
    )
