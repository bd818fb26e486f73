"""Routes that do not generate: health, models, tokens, metrics, documentation, and what Ollama's clients ask for."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from .api_description import description, description_page
from .caption_styles import APPLY_STYLE, APPLY_STYLE_BYTES, styled
from .errors import invalid
from .generation_route import GenerationRoute, in_time
from .http import read_body, unless_left, watched
from .json_text import dumps
from .metrics import CONTENT_TYPE
from .ollama_api import SHOW
from .openai_requests import read_messages
from .page import chat_page
from .service import Service
from .tokens import DETOKENIZE, TOKENIZE

Handler = Callable[[Request], Awaitable[Response]]

# Endpoint -> its paths. The API of OpenAI is also found without /v1, since some clients add the path to any address.
GENERATION_PATHS = {
    "chat": ("/v1/chat/completions", "/chat/completions"),
    "completions": ("/v1/completions", "/completions"),
    "messages": ("/v1/messages",),
    "ollama_chat": ("/api/chat",),
    "ollama_generate": ("/api/generate",),
}


def routes(service: Service) -> list[BaseRoute]:
    """Return all routes."""
    handlers = Handlers(service)
    gets: dict[str, Handler] = {
        "/": handlers.page,
        "/health": handlers.health,
        "/v1/models": handlers.models,
        "/models": handlers.models,
        "/v1/models/{name:path}": handlers.model,
        "/metrics": handlers.metrics,
        "/openapi.json": handlers.openapi,
        "/docs": handlers.docs,
        "/api/tags": handlers.tags,
        "/api/ps": handlers.tags,
        "/api/version": handlers.version,
    }
    posts: dict[str, Handler] = {
        "/tokenize": handlers.tokenize,
        "/detokenize": handlers.detokenize,
        "/apply_style": handlers.apply_style,
        "/v1/messages/count_tokens": handlers.count_tokens,
        "/api/show": handlers.show,
    }
    generation = [
        Route(path, _App(GenerationRoute(service, name)), methods=["POST"])
        for name, paths in GENERATION_PATHS.items()
        for path in paths
    ]
    return [
        *(Route(path, handler, methods=["GET"]) for path, handler in gets.items()),
        *(Route(path, handler, methods=["POST"]) for path, handler in posts.items()),
        *generation,
    ]


class _App:
    """Gives an ASGI application to Starlette's Route, which takes functions for handlers of requests."""

    def __init__(self, app: GenerationRoute) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Handlers:
    """The handlers of all routes that do not generate.

    Args:
        service: what they describe.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._name = service.options.model_name
        self._description = description(service.options.limits)
        self._page = chat_page(service.options)
        self._modified = datetime.fromtimestamp(service.created, timezone.utc).isoformat()

    async def health(self, request: Request) -> Response:
        """200 if the model is ready, 503 before, after it failed, and while the server is ending."""
        self._service.check_ready()
        return _json({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The list of models in the formats of OpenAI and Anthropic at once."""
        self._service.check_ready()
        listed = {"object": "list", "data": [self._model()]}
        return _json({**listed, "has_more": False, "first_id": self._name, "last_id": self._name})

    async def model(self, request: Request) -> Response:
        """One model."""
        self._service.check_ready()
        self._service.check_model({"model": request.path_params["name"]})
        return _json(self._model())

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """The description of this API."""
        return _json(self._description)

    async def docs(self, request: Request) -> Response:
        """The same as a page."""
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
        return HTMLResponse(description_page(self._description), headers=headers)

    async def page(self, request: Request) -> Response:
        """The web page for people."""
        return HTMLResponse(self._page.content, headers=dict(self._page.headers))

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text or a chat, as vLLM returns them."""
        return await self._answer(request, TOKENIZE.read, self._tokenize)

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        builder = self._service.check_ready()
        return await self._answer(request, DETOKENIZE.read, lambda values: {"prompt": builder.decode(values["tokens"])})

    async def apply_style(self, request: Request) -> Response:
        """A caption as the data sets' command would write it, by the rules of its style.

        It needs neither the model nor a place in the queue, without which a page would lose a caption that it has.
        """
        began, limits = time.perf_counter(), replace(self._service.options.limits, body_bytes=APPLY_STYLE_BYTES)
        body = await read_body(request.scope, request.receive, limits)
        work = self._service.compute(body, APPLY_STYLE.read, lambda values: dumps(styled(values)))
        return Response(await in_time(work, limits, began), media_type="application/json")

    async def count_tokens(self, request: Request) -> Response:
        """Anthropic's count of a prompt's tokens."""
        self._service.check_ready()
        messages = self._service.messages
        if messages is None:
            raise RuntimeError("the model is not loaded")
        return await self._answer(
            request, messages.count_values, lambda values: {"input_tokens": messages.prompt(values).tokens}
        )

    def _tokenize(self, values: Mapping[str, Any]) -> dict[str, Any]:
        builder = self._service.check_ready()
        if ("prompt" in values) == ("messages" in values):
            raise invalid("give either prompt or messages", "prompt")
        if "messages" in values:
            prompt = builder.chat(read_messages(values["messages"]))
        else:
            prompt = builder.text(values["prompt"])
        ids = prompt.input_ids[0].tolist()
        if "prompt" in values and not values.get("add_special_tokens", True):
            ids = ids[1:]
        removed = prompt.input_ids.shape[1] - len(ids)
        body = {"count": prompt.tokens - removed, "max_model_len": builder.context_length, "tokens": ids}
        if values.get("return_token_strs"):
            body["token_strs"] = builder.token_texts(ids)
        return body

    async def tags(self, request: Request) -> Response:
        """Ollama's list of models."""
        self._service.check_ready()
        tag = {"name": self._name, "model": self._name, "modified_at": self._modified, "size": 0, "digest": ""}
        return _json({"models": [{**tag, "details": self._details()}]})

    async def version(self, request: Request) -> Response:
        """A version of Ollama's API; clients ask for it to see whether a server answers."""
        return _json({"version": "0.6.0"})

    async def show(self, request: Request) -> Response:
        """Ollama's description of a model."""
        return await self._answer(request, SHOW.read, self._show)

    def _show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if "name" in values:
            self._service.check_model({"model": values["name"]})
        builder = self._service.check_ready()
        return {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": self._details(),
            "model_info": {"general.architecture": "share4v", "share4v.context_length": builder.context_length},
            "capabilities": ["completion", "vision"] if builder.has_vision else ["completion"],
            "modified_at": self._modified,
        }

    async def _answer(
        self,
        request: Request,
        check: Callable[[Mapping[str, Any]], dict[str, Any]],
        compute: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> Response:
        """Answer a POST: check its fields and compute the answer in threads.

        It counts as a request until it has been answered, which bounds how many bodies are in memory.
        """
        self._service.check_ready()
        began, limits = time.perf_counter(), self._service.options.limits
        with self._service.admission.reserve():
            body = await self._service.arrived(read_body(request.scope, request.receive, limits))
            async with watched(request.receive) as left:
                work = self._service.compute(body, check, lambda values: dumps(compute(values)))
                del body
                data = await in_time(unless_left(work, left), limits, began)
        return Response(data, media_type="application/json")

    def _model(self) -> dict[str, Any]:
        builder = self._service.check_ready()
        own = {"id": self._name, "object": "model", "created": self._service.created, "owned_by": "mindone-share4v"}
        # As vLLM lists a LoRA: `root` is what was loaded, and `parent` the model that it adapts.
        options = self._service.options
        base = options.base_model or self._name
        own |= {"root": " + ".join(options.adapters) or base, "parent": base if options.adapters else None}
        own["adapters"] = list(options.adapters)
        anthropic = {"type": "model", "display_name": self._name, "created_at": self._modified}
        return {**own, **anthropic, "max_model_len": builder.context_length}

    def _details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "",
            "family": "share4v",
            "families": ["share4v"],
            "parameter_size": "",
            "quantization_level": "",
        }


def _json(body: Mapping[str, Any]) -> Response:
    return Response(dumps(body), media_type="application/json")
