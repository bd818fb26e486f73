"""Anthropic's Messages API: fields, requests, complete answers and streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from .chat import Prompt, PromptBuilder, Turn
from .errors import ApiError, invalid
from .fields import Field, Fields
from .generation import Generation
from .json_text import dumps
from .options import Limits
from .sampling import generation_settings
from .structured_output import anthropic_shape
from .value_types import Anything, Boolean, Choice, Integer, Items, ListOf, Number, Structure, Text

if TYPE_CHECKING:
    from mindone.models.share4v.generation.continuous_batch import Completion
    from mindone.models.share4v.generation.decoding import GenerationSettings

_NO_TOOLS = "the model cannot call tools; leave it out"


@dataclass(frozen=True)
class MessagesRequest:
    """A request for a message, read and checked; attributes as in CompletionRequest."""

    prompts: list[tuple[Prompt, GenerationSettings]]
    stream: bool
    stops: tuple[str, ...]


def message_fields(limits: Limits, counts_only: bool = False) -> Fields:
    """Return the fields of /v1/messages, or of /v1/messages/count_tokens."""
    shared = [
        Field("model", "works", "the name that /v1/models lists; left out, it is that one", Text(1000)),
        Field("messages", "works", "roles user and assistant; text and images", Items(1000), (), True),
        Field("system", "works", "a string or a list of text blocks"),
        Field("tools", "refused", _NO_TOOLS, neutral=([],)),
        Field("tool_choice", "refused", _NO_TOOLS, neutral=({"type": "none"},)),
        Field("thinking", "refused", "the model does not think before it answers", neutral=({"type": "disabled"},)),
        Field("cache_control", "ignored", "every prompt's prefix is cached"),
        Field("output_config", "works", "format with a JSON schema, which the answer matches", Structure(("format",))),
    ]
    if counts_only:
        return Fields(shared)
    stop = ListOf(Text(limits.stop_characters, 1), limits.stop_strings)
    own = [
        Field("max_tokens", "works", "tokens of the answer, 256 by default; more than fit are lowered", Integer(1)),
        Field("stop_sequences", "works", "strings that end the answer", stop),
        Field("stream", "works", "server-sent events", Boolean()),
        Field("temperature", "works", "0 is greedy, the default; 1 if top_p or top_k is given", Number(0, 1)),
        Field("top_p", "works", "nucleus sampling", Number(0, 1, above=True)),
        Field("top_k", "works", "0 keeps all tokens", Integer(0, 2**31)),
        Field("metadata", "ignored", "requests are not distinguished by their users", Anything()),
        Field("service_tier", "ignored", "there is one tier"),
        Field("speed", "ignored", "there is one speed"),
        Field("inference_geo", "ignored", "requests are processed on this server"),
        Field("container", "refused", "the server runs no code"),
        Field("mcp_servers", "refused", _NO_TOOLS, neutral=([],)),
        Field("context_management", "refused", "shorten the conversation yourself"),
    ]
    return Fields([*shared, *own])


class MessagesReader:
    """Reads requests of Anthropic's API.

    Args:
        builder: of prompts.
        limits: what clients may ask for.
    """

    def __init__(self, builder: PromptBuilder, limits: Limits) -> None:
        self._builder = builder
        self._limits = limits
        self.values = message_fields(limits).read
        self.count_values = message_fields(limits, counts_only=True).read

    def message(self, values: Mapping[str, Any]) -> MessagesRequest:
        """Return the request with these values; takes time, since images are decoded."""
        stops = values.get("stop_sequences", ())
        renamed = {**values, "max_new_tokens": values["max_tokens"]} if "max_tokens" in values else dict(values)
        shape = anthropic_shape(values.get("output_config"))
        own = () if shape else self._builder.stop_strings
        settings = generation_settings(renamed, self._limits, self._builder.context_length, (*stops, *own), shape=shape)
        return MessagesRequest([(self.prompt(values), settings)], values.get("stream", False), stops)

    def prompt(self, values: Mapping[str, Any]) -> Prompt:
        """Return the prompt of a request."""
        turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(values["messages"])]
        system = values.get("system")
        if system is not None:
            turns.insert(0, _add_content(Turn("system", ""), system, "system"))
        return self._builder.chat(turns)


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise invalid(f'{where} must be an object with "role" and "content"', where)
    role = Choice(("user", "assistant")).check(message.get("role"), f"{where}.role")
    return _add_content(Turn(role, ""), message.get("content"), f"{where}.content")


def _add_content(turn: Turn, content: Any, where: str) -> Turn:
    if isinstance(content, str):
        turn.text = content
        return turn
    if not isinstance(content, list):
        raise invalid(f"{where} must be a string or a list of blocks", where)
    for index, block in enumerate(content):
        part = f"{where}[{index}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            turn.text += Text().check(block.get("text"), f"{part}.text")
        elif kind == "image" and turn.role == "user":
            turn.images.append((_image(block.get("source"), f"{part}.source"), f"{part}.source"))
        else:
            kinds = '"text" or "image"' if turn.role == "user" else '"text"'
            raise invalid(f"{part} must be a block of the type {kinds}", part, "unsupported_parameter")
    return turn


def _image(source: Any, where: str) -> str:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "base64":
        return Text(2**31, 1).check(source.get("data"), f"{where}.data")
    if kind == "url":
        return Text(2**31, 1).check(source.get("url"), f"{where}.url")
    raise invalid(f'{where} must have the type "base64" or "url"', where)


def anthropic_error(error: ApiError) -> dict[str, object]:
    """Return the body of an error."""
    return {"type": "error", "error": {"type": error.anthropic_type, "message": error.message}}


@dataclass(frozen=True)
class MessageWriter:
    """Formats the answer to one request.

    Attributes:
        request: what was asked.
        generation: its answer.
        model: name of the model.
        ping_seconds: seconds without an event after which a stream gets a ping.
        id: of the answer.
    """

    request: MessagesRequest
    generation: Generation
    model: str
    ping_seconds: float
    id: str = field(default_factory=lambda: f"msg_{uuid4().hex}")

    def complete(self) -> dict[str, Any]:
        """Return the body of a complete answer."""
        completion = self.generation.completions[0]
        content = [{"type": "text", "text": completion.text}]
        usage = self._usage(completion.cached_tokens, len(completion.token_ids))
        return {**self._message(content), **self._stop(completion), "usage": usage}

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the events of a stream; an error becomes its last event."""
        from mindone.models.share4v.generation.streaming import GenerationPiece

        try:
            message = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": self._usage(0, 0)}
            yield _event("message_start", {"message": message})
            yield _event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
            while not self.generation.is_complete:
                events = await self.generation.events(self.ping_seconds)
                text = "".join(event.value.text for event in events if isinstance(event.value, GenerationPiece))
                if text:
                    yield _event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}})
                elif not self.generation.is_complete:
                    yield _event("ping", {})
            completion = self.generation.completions[0]
            yield _event("content_block_stop", {"index": 0})
            usage = self._usage(completion.cached_tokens, len(completion.token_ids))
            yield _event("message_delta", {"delta": self._stop(completion), "usage": usage})
            yield _event("message_stop", {})
        except ApiError as error:
            yield _event("error", anthropic_error(error))

    def _message(self, content: list[dict[str, str]]) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content}

    def _stop(self, completion: Completion[Any]) -> dict[str, Any]:
        if completion.stop is not None and completion.stop in self.request.stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": completion.stop}
        is_short = completion.finish_reason in ("length", "context")
        return {"stop_reason": "max_tokens" if is_short else "end_turn", "stop_sequence": None}

    def _usage(self, cached: int, new_tokens: int) -> dict[str, Any]:
        """Return the usage; Anthropic counts cached tokens apart from the others."""
        return {
            "input_tokens": self.generation.prompts[0].tokens - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": new_tokens,
        }


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: ".encode() + dumps({"type": kind, **data}) + b"\n\n"
