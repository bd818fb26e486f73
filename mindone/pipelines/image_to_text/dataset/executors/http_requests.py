"""Requests of OpenAI's chat completions API, made from a job's settings, and the answers to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..options import CaptioningSettings, ModelChoice

# Argument of `generate` -> field of OpenAI's API. The others have no field there.
_FIELDS = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
}
_OWN_FIELDS = frozenset(("model", "messages", "stream", "n", "seed", *_FIELDS.values()))
# Settings that only a model in this process has, with their values if they are not set.
_UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "min_new_tokens": (0, "use min_words, which asks again"),
    "top_k": (None, "use top_p"),
    "min_p": (None, "use top_p"),
    "repetition_penalty": (1.0, "use frequency_penalty"),
    "no_repeat_ngram_size": (None, "use frequency_penalty"),
    "begin_with": ("", "put it before every caption with template (--template)"),
}
_MAX_STOPS = 4  # of OpenAI's API
_SEEDS = 2**31  # some servers read the seed as a signed number of 32 bits
# A retry of the local model raises `repetition_penalty` by 0.1 or 0.2; OpenAI's API has only the additive penalty.
_PENALTY_RATIO = 3.0
# OpenAI's reasons why a text ended -> those of records.
_FINISH_REASONS = {"stop": "stop", "length": "length", "eos": "eos"}


@dataclass(frozen=True)
class Answer:
    """What an endpoint answered.

    Attributes:
        text: the generated text, unchanged.
        finish_reason: "stop" or "length".
        model: the endpoint's own name of the model; "" if it gives none.
        tokens: number of generated tokens as the endpoint counts them; 0 if it does not.
    """

    text: str
    finish_reason: str = "stop"
    model: str = ""
    tokens: int = 0


class AnswerError(ValueError):
    """A response is not a chat completion that can be used; another attempt may give one."""


class NoTextError(AnswerError):
    """A chat completion has no text, as when it was cut while the model reasons."""


class RefusedError(ValueError):
    """The endpoint will not answer this question about this picture."""


def check_settings(choice: ModelChoice, settings: CaptioningSettings, request_fields: Mapping[str, Any]) -> None:
    """Refuse settings that an OpenAI-compatible endpoint has no field for, by name, before any request.

    Raises:
        ValueError: a setting has no field in OpenAI's API, or `request_fields` sets what another setting sets.
    """
    for name, (unset, advice) in _UNSUPPORTED.items():
        if getattr(settings, name) != unset:
            raise ValueError(
                f"{name} has no field in OpenAI's API, so engine 'http' (--engine http) cannot set it: leave it out, "
                f"{advice}, or set the endpoint's own field with request_fields (--request-fields)"
            )
    blank = ModelChoice()
    for one in fields(ModelChoice):
        if one.name != "model" and getattr(choice, one.name) != getattr(blank, one.name):
            raise ValueError(
                f"{one.name} has no effect with engine 'http' (--engine http), where the endpoint loads the model: "
                "leave it out"
            )
    if len(settings.stop) > _MAX_STOPS:
        raise ValueError(f"stop has {len(settings.stop)} strings, but OpenAI's API takes at most {_MAX_STOPS}")
    own = _OWN_FIELDS | ({"response_format"} if settings.schema is not None else set())
    for name in request_fields:
        if name in own:
            raise ValueError(
                f"request_fields sets {name!r}, which follows from other settings: use those, and leave it out"
            )


def request_body(
    model: str,
    prompt: str,
    uris: Sequence[str],
    generation: Mapping[str, Any],
    changes: Mapping[str, Any],
    request_fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the JSON body of a request.

    Args:
        model: the name that the endpoint knows the model by.
        prompt: the question.
        uris: images.
        generation: keyword arguments of `generate`.
        changes: of the attempt, as in `rules.retries`.
        request_fields: further fields.

    Example:
        >>> body = request_body("m", "Describe", [], {"max_new_tokens": 8, "temperature": 0.0}, {"seed": 5}, {})
        >>> {name: value for name, value in body.items() if name != "messages"}
        {'model': 'm', 'max_tokens': 8, 'temperature': 0.0, 'stream': False}
    """
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    parts.append({"type": "text", "text": prompt})
    settings = {**generation, **_changes(generation, changes)}
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": parts}]}
    for argument, name in _FIELDS.items():
        value = settings.get(argument)
        if value is not None and value != ():
            body[name] = list(value) if isinstance(value, tuple) else value
    if body.get("temperature"):
        body["seed"] = changes["seed"] % _SEEDS
    else:
        body.pop("top_p", None)  # of sampling
    schema = generation.get("schema")
    if schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "caption", "schema": dict(schema), "strict": True},
        }
    return {**body, "stream": False, **request_fields}


def _changes(generation: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of an attempt in terms that OpenAI's API has."""
    found = {name: changes[name] for name in ("temperature", "top_p") if name in changes}
    penalty = changes.get("repetition_penalty")
    if penalty is not None:
        added = round(_PENALTY_RATIO * (penalty - 1), 3)
        found["frequency_penalty"] = min(2.0, added + (generation.get("frequency_penalty") or 0.0))
    return found


def read_answer(data: bytes, is_json: bool = False) -> Answer:
    """Read the body of a response.

    Args:
        data: the body.
        is_json: whether the text must be JSON.

    Raises:
        AnswerError: it is no chat completion, or has no text; the message says what it is.
        RefusedError: the endpoint's model or its filter refuses.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise AnswerError(f"it is not JSON: {_shown(data)}") from None
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text = _text(message.get("content"))
        reason = choice.get("finish_reason") or "stop"
    except (KeyError, IndexError, TypeError, AttributeError):
        raise AnswerError(f"it is not a chat completion: {_shown(data)}") from None
    if reason == "content_filter" or (text is None and message.get("refusal")):
        raise RefusedError(f"the endpoint refused to answer: {message.get('refusal') or 'its content filter'}"[:300])
    if text is None:
        raise NoTextError(f"it has no text: {_shown(data)}")
    if is_json and not _is_json(text):
        cut = ", because it was cut: increase max_new_tokens (--max-new-tokens)" if reason == "length" else ""
        raise AnswerError(f"its text is not JSON, although a schema was sent{cut}")
    model = body.get("model")
    return Answer(
        text=text,
        finish_reason=_FINISH_REASONS.get(reason, "stop"),
        model=model if isinstance(model, str) else "",
        tokens=read_usage(data)[1],
    )


def read_usage(data: bytes) -> tuple[int, int]:
    """Return the numbers of prompt and completion tokens that a response states; 0 for what it does not.

    Example:
        >>> read_usage(b'{"usage": {"prompt_tokens": 7, "completion_tokens": 3}}'), read_usage(b"<html>")
        ((7, 3), (0, 0))
    """
    try:
        usage = json.loads(data)["usage"]
        return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return 0, 0


def error_message(data: bytes) -> str:
    """Return what an error response says, on one line."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return _shown(data)
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    text = error if isinstance(error, str) else json.dumps(error)
    return " ".join(text.split())[:300]


def error_code(data: bytes) -> str:
    """Return the code of OpenAI's error object, or ""."""
    try:
        code = json.loads(data)["error"]["code"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""
    return code if isinstance(code, str) else ""


def _text(content: Any) -> str | None:
    if isinstance(content, list):  # parts, as some servers send them
        texts = [part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else None
    return content if isinstance(content, str) else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _shown(data: bytes) -> str:
    text = " ".join(data[:400].decode("utf-8", "replace").split())
    return repr(text[:200]) if text else "it is empty"
