"""The description of the API in OpenAPI's format, made from the tables of fields, and a page that shows it."""

from __future__ import annotations

from html import escape
from typing import Any

from . import anthropic_api, ollama_api, openai_requests
from .caption_styles import APPLY_STYLE
from .errors import STATUSES
from .fields import Fields
from .options import Limits
from .tokens import DETOKENIZE, TOKENIZE

_JSON = "application/json"
_TEXT_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_NESTED_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}


def request_fields(limits: Limits) -> dict[str, Fields]:
    """Return the fields of every route that has a body, by path."""
    return {
        "/v1/chat/completions": openai_requests.chat_fields(limits),
        "/v1/completions": openai_requests.completion_fields(limits),
        "/v1/messages": anthropic_api.message_fields(limits),
        "/v1/messages/count_tokens": anthropic_api.message_fields(limits, counts_only=True),
        "/api/chat": ollama_api.chat_fields(),
        "/api/generate": ollama_api.generate_fields(),
        "/api/show": ollama_api.SHOW,
        "/tokenize": TOKENIZE,
        "/detokenize": DETOKENIZE,
        "/apply_style": APPLY_STYLE,
    }


# Path -> what it does, the type of its answer, and that of its stream.
_SUMMARIES: dict[str, tuple[str, str, str | None]] = {
    "/v1/chat/completions": ("Answer a chat (OpenAI)", _JSON, "text/event-stream"),
    "/v1/completions": ("Continue a text (OpenAI)", _JSON, "text/event-stream"),
    "/v1/messages": ("Answer a chat (Anthropic)", _JSON, "text/event-stream"),
    "/v1/messages/count_tokens": ("Count the tokens of a chat (Anthropic)", _JSON, None),
    "/api/chat": ("Answer a chat (Ollama)", _JSON, "application/x-ndjson"),
    "/api/generate": ("Answer a question (Ollama)", _JSON, "application/x-ndjson"),
    "/api/show": ("Describe the model (Ollama)", _JSON, None),
    "/tokenize": ("Turn a text or a chat into token ids (vLLM)", _JSON, None),
    "/detokenize": ("Turn token ids into text (vLLM)", _JSON, None),
    "/apply_style": ("Apply the rules of a style to a caption (the pages)", _JSON, None),
    "/v1/models": ("List the model (OpenAI, Anthropic)", _JSON, None),
    "/v1/models/{name}": ("Describe the model (OpenAI, Anthropic)", _JSON, None),
    "/api/tags": ("List the model (Ollama)", _JSON, None),
    "/api/ps": ("List the model (Ollama)", _JSON, None),
    "/api/version": ("Version of Ollama's API", _JSON, None),
    "/health": ("200 if the model is ready, else 503", _JSON, None),
    "/metrics": ("Metrics for Prometheus", "text/plain", None),
    "/openapi.json": ("This description", _JSON, None),
    "/": ("The page for people", "text/html", None),
    "/docs": ("This description as a page", "text/html", None),
}


def description(limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI document."""
    fields = request_fields(limits)
    return {
        "openapi": "3.1.0",
        "info": {"title": "share4v serve", "version": "1"},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
        "paths": {path: _path(path, fields.get(path)) for path in _SUMMARIES},
    }


def _path(path: str, fields: Fields | None) -> dict[str, Any]:
    summary, kind, stream = _SUMMARIES[path]
    schema: dict[str, Any] = {"type": "object"} if kind == _JSON else {"type": "string"}
    content = {kind: {"schema": schema}}
    if stream is not None:
        content[stream] = {"schema": {"type": "string"}}
    errors = {
        str(status): {"description": "error", "content": {_JSON: {"schema": _error(path)}}} for status in STATUSES
    }
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "success", "content": content}, **errors},
    }
    if "{name}" in path:
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    if fields is None:
        return {"get": operation}
    operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": fields.schema()}}}
    return {"post": operation}


def _error(path: str) -> dict[str, Any]:
    return _TEXT_ERROR if path.startswith("/api/") else _NESTED_ERROR


def description_page(document: dict[str, Any]) -> str:
    """Return an HTML page that shows an OpenAPI document; it needs no script and no other file."""
    parts = [_HEAD]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>")
            body = operation.get("requestBody")
            if body:
                schema = body["content"][_JSON]["schema"]
                rows = "".join(
                    f"<tr><td><code>{escape(name)}</code></td><td>{escape(own['description'])}</td></tr>"
                    for name, own in schema["properties"].items()
                )
                parts.append(
                    f"<table><thead><tr><th>field</th><th>effect</th></tr></thead><tbody>{rows}</tbody></table>"
                )
    return "\n".join([*parts, "</main></body></html>"])


_HEAD = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>share4v serve: API</title>
<style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
main { max-width: 60rem; margin: auto; padding: 1rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem; border-bottom: 1px solid #8886 }
</style></head>
<body><main><h1>share4v serve: API</h1><p><a href="/openapi.json">openapi.json</a></p>"""
