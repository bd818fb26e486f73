"""Structured output over HTTP: answers match their schemas, bad schemas are refused, others are not held up."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import ollama
import openai
import pytest
from helpers.serving import MODEL, Live, chat, serving

from mindone.models.share4v.generation import grammar_trial
from mindone.models.share4v.generation.constraints import grammar_of
from mindone.models.share4v.generation.grammar_trial import Trial, refusal
from mindone.pipelines.image_to_text.serve import service
from mindone.pipelines.image_to_text.serve.options import Limits

PATH = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
    },
    "required": ["color", "count", "words"],
    "additionalProperties": False,
}


def check(text: str) -> None:
    found = json.loads(text)
    assert list(found) == ["color", "count", "words"]
    assert found["color"] in ("red", "green", "blue") and 0 <= found["count"] <= 9
    assert len(found["words"]) <= 2 and all(len(word) <= 6 for word in found["words"])


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a busy machine needs to start the processes that try schemas."""
    monkeypatch.setattr(service, "_SCHEMA_TURNS", 60)


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "seed": 3}, {"temperature": 5.0, "n": 4, "seed": 1}])
def test_answers_match_a_schema(client: openai.OpenAI, scene: str, settings: dict[str, Any]) -> None:
    answer = client.chat.completions.create(**chat("What?", scene, response_format=form(SCHEMA), **settings))
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        check(choice.message.content or "")
    pieces = client.chat.completions.create(
        **chat("What?", scene, response_format=form(SCHEMA), **{**settings, "n": 1}), stream=True
    )
    check("".join(piece.choices[0].delta.content or "" for piece in pieces))


def test_an_answer_that_is_cut_is_complete_and_says_so(client: openai.OpenAI, live: Live) -> None:
    """Also if it may not be longer than the shortest answer, whose length the error says if it does not fit."""
    with pytest.raises(openai.BadRequestError, match=r"needs ([0-9]+) tokens, but only 4 are allowed") as caught:
        client.chat.completions.create(**chat("What?", response_format=form(SCHEMA), max_tokens=4))
    assert caught.value.code == "invalid_schema"
    shortest = int(str(caught.value).split("needs ")[1].split()[0])
    for settings in ({}, {"temperature": 2.0, "seed": 3}):
        answer = client.chat.completions.create(
            **chat("What?", response_format=form(SCHEMA), max_tokens=shortest, **settings)
        )
        check(answer.choices[0].message.content or "")
    comma = live.post("/tokenize", {"prompt": "a,", "add_special_tokens": False}).json()["tokens"][-1]
    words = {"type": "array", "items": {"enum": ["a word", "another word"]}, "minItems": 2}
    fields = {"response_format": form(words), "max_tokens": 40, "logit_bias": {str(comma): 100}}
    answer = client.chat.completions.create(**chat("What?", **fields))
    assert answer.choices[0].finish_reason == "length"
    assert len(json.loads(answer.choices[0].message.content or "")) > 2


def test_other_ways_to_ask(live: Live) -> None:
    def text(**fields: Any) -> str:
        found = live.post(PATH, chat("What?", temperature=2.0, seed=1, max_tokens=200, **fields))
        assert found.status_code == 200, found.text
        return str(found.json()["choices"][0]["message"]["content"])

    check(text(guided_json=SCHEMA))
    check(text(structured_outputs={"json": SCHEMA}))
    assert re.fullmatch("(yes|no), [0-9]{3}", text(guided_regex="(yes|no), [0-9]{3}"))
    assert text(guided_choice=["a.b", "c|d"]) in ("a.b", "c|d")
    assert text(structured_outputs={"choice": ["one"]}) == "one"
    assert text(response_format={"type": "json_object"}).startswith("{")
    completed = live.post("/v1/completions", {"prompt": "Yes or no?", "guided_choice": ["yes", "no"]}).json()
    assert completed["choices"][0]["text"] in ("yes", "no")
    found = live.post(
        "/v1/messages",
        {
            "messages": [{"role": "user", "content": "What?"}],
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
    )
    check(found.json()["content"][0]["text"])


def test_ollamas_format(live: Live) -> None:
    client = ollama.Client(host=live.url, trust_env=False)
    check(client.generate(MODEL, "What?", format=SCHEMA).response or "")
    check(client.chat(MODEL, [{"role": "user", "content": "What?"}], format=SCHEMA).message.content or "")


SLOW = {"allOf": [{"type": "string", "pattern": f".*a.{{{number}}}b.*"} for number in range(5, 25)]}


def test_schemas_that_take_hours_to_compile_block_nobody(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """llguidance cannot be interrupted: the compilation runs in a process that is killed.

    The compilations end when other requests have been answered, so that those are answered meanwhile.
    """
    answered, compiling = threading.Event(), threading.Semaphore(0)

    def held(trial: Trial, text: str, seconds: float) -> str | None:
        compiling.release()
        found = original(trial, text, seconds)
        answered.wait(600)
        return found

    original = Trial.refusal
    monkeypatch.setattr(Trial, "refusal", held)
    monkeypatch.setattr(service, "_SCHEMA_TURNS", 600)  # times one second

    def ask(pool: ThreadPoolExecutor, schema: Any) -> Future[httpx.Response]:
        return pool.submit(running.post, PATH, chat("What?", response_format=form(schema)), timeout=600)

    with serving(tiny, limits=Limits(schema_seconds=1.0)) as running, ThreadPoolExecutor(6) as pool:
        slow = [ask(pool, SLOW) for _ in range(3)]
        assert all(compiling.acquire(timeout=600) for _ in range(service._COMPILING))
        good = ask(pool, {"const": "not slow"})
        free = [running.post(PATH, chat("What?", max_tokens=1)).status_code for _ in range(3)]
        assert free == [200] * 3 and not any(one.done() for one in (*slow, good))
        answered.set()
        for one in slow:
            error = one.result().json()["error"]
            assert one.result().status_code == 400 and error["code"] == "invalid_schema", error
            assert error["message"].startswith("response_format: it takes more than 1 s to compile")
        assert good.result().json()["choices"][0]["message"]["content"] == '"not slow"'


def test_schemas_wait_for_their_turn_within_a_limit(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is being compiled is waited for, however long a busy machine takes: it would be 429 each time."""
    answered, compiling = threading.Event(), threading.Semaphore(0)

    def held(trial: Trial, text: str, seconds: float) -> str | None:
        compiling.release()
        answered.wait(600)
        return None

    monkeypatch.setattr(Trial, "refusal", held)
    monkeypatch.setattr(service, "_SCHEMA_TURNS", 12_000)  # times 0.05 seconds, within which the first ones begin

    def ask(text: str) -> httpx.Response:
        return running.post(PATH, chat("What?", response_format=form({"const": text})), timeout=600)

    with serving(tiny, limits=Limits(schema_seconds=0.05)) as running, ThreadPoolExecutor(4) as pool:
        first = [pool.submit(ask, f"first {number}") for number in range(service._COMPILING)]
        assert all(compiling.acquire(timeout=600) for _ in first)
        monkeypatch.setattr(service, "_SCHEMA_TURNS", 3)
        found = ask("late")
        answered.set()
        assert found.status_code == 429 and found.json()["error"]["code"] == "queue_timeout"
        assert [one.result().status_code for one in first] == [200] * service._COMPILING


def test_the_time_of_a_compilation_is_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine, on which the process takes longer to start than a schema may to compile, refuses none."""
    monkeypatch.setattr(grammar_trial, "_PROGRAM", f"import time; time.sleep(0.6){grammar_trial._PROGRAM}")
    grammar = grammar_of({"type": "null"}, None)
    assert grammar is not None and refusal(grammar, 0.5) is None


def test_a_system_without_limits_for_processes_compiles_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither the module `resource` nor SIGPROF; the clock ends what takes too long."""
    windows = "import signal, sys; sys.modules['resource'] = None; del signal.SIGPROF, signal.ITIMER_PROF"
    monkeypatch.setattr(grammar_trial, "_PROGRAM", f"{windows}{grammar_trial._PROGRAM}")
    monkeypatch.delattr(signal, "SIGPROF")
    grammar = grammar_of({"type": "null"}, None)
    assert grammar is not None and refusal(grammar, 0.5) is None
    monkeypatch.setattr(grammar_trial, "_CLOCK_ALLOWANCE", 0.0)
    slow = grammar_of(SLOW, None)
    assert slow is not None and "more than 0.2 s to compile" in (refusal(slow, 0.2) or "")


DEEP: Any = {"type": "string"}
for _ in range(200):
    DEEP = {"type": "array", "items": DEEP}
BAD = {
    "type": {"type": "objec"},
    "reference": {"$ref": "https://example.org/schema.json"},
    "look_ahead": {"type": "string", "pattern": "(?=a)b"},
    "impossible": {"type": "integer", "minimum": 5, "maximum": 4},
    "endless": {"$ref": "#"},
    "back_reference": {"type": "string", "pattern": "(a)\\1"},
    "huge_number": {"type": "string", "minLength": 10**400},
    "large": {"type": "object", "properties": {f"name{number}": {"type": "string"} for number in range(5000)}},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_schemas_are_refused(live: Live, name: str) -> None:
    found = live.post(PATH, chat("What?", response_format=form(BAD[name])))
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert (error["param"], error["code"]) == ("response_format", "invalid_schema")
    assert error["message"].startswith("response_format: ") and len(error["message"]) < 400
    assert live.post(PATH, chat("What?", max_tokens=1)).status_code == 200


def test_a_deep_schema_ends_only_its_own_request(live: Live) -> None:
    assert live.post(PATH, chat("What?", response_format=form(DEEP), max_tokens=5)).status_code in (200, 400)
    assert live.post(PATH, chat("What?", max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": r"[^\s\S]"}, "guided_regex"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": {"type": "null"}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_malformed_requests(live: Live, fields: dict[str, Any], param: str) -> None:
    found = live.post(PATH, chat("What?", **fields))
    assert found.status_code == 400 and found.json()["error"]["param"] == param
