"""The tables of fields: every field that clients are known to send works, is ignored for a reason, or is refused."""

from __future__ import annotations

import importlib.util
import json
from typing import Any, get_type_hints

import pytest
from anthropic.types import message_create_params
from helpers.paths import ROOT
from ollama._types import ChatRequest, GenerateRequest
from ollama._types import Options as OllamaOptions
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from mindone.pipelines.image_to_text.serve.api_description import request_fields
from mindone.pipelines.image_to_text.serve.errors import ApiError
from mindone.pipelines.image_to_text.serve.fields import Field, Fields
from mindone.pipelines.image_to_text.serve.json_text import dumps, loads
from mindone.pipelines.image_to_text.serve.ollama_api import option_fields
from mindone.pipelines.image_to_text.serve.options import Limits, ServerOptions
from mindone.pipelines.image_to_text.serve.value_types import (
    Bias,
    Boolean,
    Choice,
    Integer,
    Items,
    ListOf,
    Number,
    Structure,
    Text,
)

TABLES = {**request_fields(Limits()), "options": option_fields(Limits())}
# What servers of the same kind accept beyond the APIs' own fields.
EXTRAS = (
    *("top_k", "min_p", "repetition_penalty", "length_penalty", "min_tokens", "ignore_eos", "stop_token_ids"),
    *("include_stop_str_in_output", "skip_special_tokens", "continue_final_message", "return_token_ids", "priority"),
    *("request_id", "return_progress", "chat_template", "chat_template_kwargs", "guided_json", "guided_regex"),
)


def names(table: str) -> set[str]:
    return {field.name for field in TABLES[table]}


def test_every_field_of_the_clients_types_is_known() -> None:
    chat = get_type_hints(chat_create_params.CompletionCreateParamsStreaming)
    assert set(chat) | set(EXTRAS) <= names("/v1/chat/completions")
    text = get_type_hints(completion_create_params.CompletionCreateParamsStreaming)
    assert set(text) <= names("/v1/completions")
    message = get_type_hints(message_create_params.MessageCreateParamsStreaming)
    assert set(message) - {"diagnostics", "user_profile_id", "workspace_id"} <= names("/v1/messages")
    assert set(ChatRequest.model_fields) <= names("/api/chat")
    assert set(GenerateRequest.model_fields) <= names("/api/generate")
    known = set(OllamaOptions.model_fields) - {"logits_all", "vocab_only", "embedding_only"}
    assert known <= {field.name for field in TABLES["options"]}


@pytest.mark.parametrize("table", TABLES)
def test_every_refused_field_names_itself_and_accepts_its_neutral_values(table: str) -> None:
    fields = TABLES[table]
    required = {field.name: [{}] if isinstance(field.kind, Items) else "x" for field in fields if field.is_required}
    if "tokens" in required:
        required = {"tokens": [1]}
    assert len(list(fields)) >= 2
    for field in fields:
        assert len(field.note) > 3
        if field.effect == "refused":
            with pytest.raises(ApiError, match=f"^{field.name} is not supported: ") as found:
                fields.read({**required, field.name: {"some": "value"}})
            assert (found.value.status, found.value.param) == (400, field.name)
            for neutral in field.neutral:
                assert field.name not in fields.read({**required, field.name: neutral})
        assert field.is_required or field.name not in fields.read({**required, field.name: None})


def test_unknown_and_missing_fields() -> None:
    fields = Fields(
        [Field("messages", "works", "the chat", Items(3), (), True), Field("seed", "works", "n", Integer(0))]
    )
    with pytest.raises(ApiError, match="unknown field 'sede'; known: messages, seed") as unknown:
        fields.read({"messages": [{}], "sede": 1})
    assert (unknown.value.param, unknown.value.code) == ("sede", "unknown_parameter")
    with pytest.raises(ApiError, match="messages is missing: the chat"):
        fields.read({"seed": 1})
    with pytest.raises(ApiError, match="messages must be a list of 1 to 3 objects"):
        fields.read({"messages": []})


WRONG: list[tuple[Any, Any]] = [
    (Boolean(), 1),
    (Boolean(), "true"),
    (Integer(0, 5), 6),
    (Integer(0, 5), True),
    (Integer(0, 5), 1.5),
    (Integer(0, 5), "1"),
    (Integer(0), 2**63),
    (Number(0, 2), -0.1),
    (Number(0, 2), float("nan")),
    (Number(0, 1, above=True), 0),
    (Number(0, 1), 10**400),
    (Number(0, 1), True),
    (Text(3), "four"),
    (Text(3, 1), ""),
    (Text(3), 3),
    (Choice(("a",)), "b"),
    (Choice(("a",)), ["a"]),
    (ListOf(Text(3, 1), 2), ["a", "b", "c"]),
    (ListOf(Text(3, 1), 2), "a"),
    (ListOf(Text(3, 1), 2, or_one=True), ["a", 1]),
    (Bias(2), {"1": 101}),
    (Bias(2), {"a": 1}),
    (Bias(2), {"-1": 1}),
    (Bias(2), {"1": 1, "2": 1, "3": 1}),
    (Bias(2), {"9" * 5000: 1}),
    (Structure(("a",)), {"b": 1}),
    (Structure(), []),
]


@pytest.mark.parametrize(("kind", "value"), WRONG)
def test_wrong_values_are_refused_with_the_name_of_the_field(kind: Any, value: Any) -> None:
    with pytest.raises(ApiError) as found:
        kind.check(value, "field")
    assert found.value.status == 400 and found.value.message.startswith("field") and len(found.value.message) < 300


def test_right_values() -> None:
    assert Integer(0, 5).check(5.0, "x") == 5 and Number(0, 1).check(1, "x") == 1.0
    assert ListOf(Text(9), 2, or_one=True).check("a", "x") == ("a",)
    assert Bias(2).check({"13": -100}, "x") == {13: -100.0}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"nan", b'{"a": NaN}', b'{"a": Infinity}', b"\xff", b"[" * 10**5])
def test_bodies_that_are_no_json_object(body: bytes) -> None:
    with pytest.raises(ApiError, match="the body") as found:
        loads(body, 10**6)
    assert found.value.status == 400


def test_many_small_values_are_refused_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing 64 MiB of empty lists takes seconds, in which no other thread runs, and 1.5 GB."""
    assert loads(b'{"a": [[], {"b": [1, 2]}, "x"]}', 9) == {"a": [[], {"b": [1, 2]}, "x"]}
    assert loads(b'{"a": "' + b"A" * 1000 + b'"}', 2) == {"a": "A" * 1000}  # an image is one value
    monkeypatch.setattr(json, "loads", lambda *given, **settings: pytest.fail("it was parsed"))
    for many in (b'{"a": [' + b"[]," * 2_000_000 + b"[]]}", b"{}" + b',{"a":{}}' * 1000, b"[" * 10**7):
        with pytest.raises(ApiError, match="more than 1,000 values: send fewer") as found:
            loads(many, 1000)
        assert found.value.status == 413


def test_text_that_utf8_cannot_encode_does_not_break_an_answer() -> None:
    assert loads(dumps({"a": "\ud800 \u4e2d"}), 1000) == {"a": "? \u4e2d"}


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="reachable from other machines, but no key is set: set api_key"):
        ServerOptions(model_name="m", host="0.0.0.0")
    assert not ServerOptions(model_name="m", host="0.0.0.0", api_keys=("k",)).is_loopback
    assert ServerOptions(model_name="m", host="::1").is_loopback
    with pytest.raises(ValueError, match="visible ASCII"):
        ServerOptions(model_name="m", api_keys=("a b",))
    assert "secret" not in repr(ServerOptions(model_name="m", api_keys=("secret",)))
    with pytest.raises(ValueError, match=r"queue \(--max-queue\) must be an integer of at least 0, got -1"):
        Limits(queue=-1)
    with pytest.raises(ValueError, match="ping_seconds must be a number above 0"):
        Limits(ping_seconds=0)


def test_the_page_of_fields_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate_serving_fields.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    written = (ROOT / "docs" / "serving_fields.md").read_text(encoding="utf-8")
    assert written == generate.page(), "run: python docs/generate_serving_fields.py"
    for fields in TABLES.values():
        assert all(f"| `{field.name}` | " in written for field in fields)
