"""What captioning tools were observed to send, and what they need: each rule that follows from it is a test."""

from __future__ import annotations

import base64
import http.client
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from helpers.serving import MODEL, SCENE, Live, chat, data_uri, serving
from PIL import Image

from mindone.pipelines.image_to_text.serve.options import Limits

PATH = "/v1/chat/completions"


def text_of(found: Any) -> str:
    assert found.status_code == 200, found.text
    return str(found.json()["choices"][0]["message"]["content"])


def test_1_parts_in_any_order_and_contents_in_any_form(live: Live, ask: Callable[..., str], scene: str) -> None:
    wanted = ask("Describe this image")
    text = {"type": "text", "text": "Describe this image"}
    for detail in (None, "auto", "low", "high"):
        image = {"type": "image_url", "image_url": {"url": scene, **({"detail": detail} if detail else {})}}
        for parts in ([text, image], [image, text]):
            assert text_of(live.post(PATH, {"messages": [{"role": "user", "content": parts}]})) == wanted
    plain = {"type": "image_url", "image_url": scene}
    assert text_of(live.post(PATH, {"messages": [{"role": "user", "content": [plain, text]}]})) == wanted
    roles = ("system", "user", "assistant", "user")
    as_text = [{"role": role, "content": f"words {role}"} for role in roles]
    as_parts = [{"role": role, "content": [{"type": "text", "text": f"words {role}"}]} for role in roles]
    answers = {text_of(live.post(PATH, {"messages": one, "max_tokens": 5})) for one in (as_text, as_parts)}
    assert len(answers) == 1
    later = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        *chat("What?", scene)["messages"],
    ]
    assert live.post(PATH, {"messages": later, "max_tokens": 5}).status_code == 200


def test_2_the_content_decides_an_images_type(live: Live, ask: Callable[..., str]) -> None:
    mislabelled = data_uri(SCENE, "image/jpeg")
    assert text_of(live.post(PATH, chat("Describe this image", mislabelled))) == ask("Describe this image")


def test_3_fields_that_ask_for_nothing(live: Live, ask: Callable[..., str], scene: str) -> None:
    nothing: dict[str, Any] = {
        **{"n": 1, "logprobs": False, "top_logprobs": None, "presence_penalty": 0.0, "frequency_penalty": 0},
        **{"stream": False, "response_format": {"type": "text"}, "tools": None, "tool_choice": None, "stop": None},
        **{"seed": None, "user": "me", "reasoning_effort": None, "logit_bias": {}, "stream_options": None},
    }
    assert text_of(live.post(PATH, chat("Describe this image", scene, **nothing))) == ask("Describe this image")
    for name, value in {"reasoning_effort": "none", "verbosity": "low", "tools": [{}]}.items():
        found = live.post(PATH, chat("Hello", **{name: value}))
        assert found.status_code == 400 and found.json()["error"]["param"] == name
        assert found.json()["error"]["message"].startswith(f"{name} is not supported")


@pytest.mark.parametrize("most", [300, 16384, None])
def test_4_more_tokens_than_fit(live: Live, scene: str, most: int | None) -> None:
    done = live.post(PATH, chat("Describe this image", scene, max_tokens=most))
    assert done.status_code == 200 and done.json()["choices"][0]["finish_reason"] in ("stop", "length")
    full = live.post(PATH, chat("Describe this image", scene, max_tokens=most or 16384, ignore_eos=True)).json()
    limit = live.service.check_ready().context_length
    assert full["choices"][0]["finish_reason"] == "length" and full["usage"]["total_tokens"] <= limit
    found = live.post(PATH, chat("a " * limit, max_tokens=most))
    assert found.status_code == 400 and found.json()["error"]["code"] == "context_length_exceeded"


def test_5_usage_and_the_end_of_a_stream(live: Live, scene: str) -> None:
    assert live.post(PATH, chat("What?", scene, max_tokens=3)).json()["usage"]["completion_tokens"] == 3
    for options, has_usage in ((None, False), ({"include_usage": True}, True)):
        found = live.post(PATH, chat("What?", scene, max_tokens=3, stream=True, stream_options=options))
        assert found.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        last = json.loads(data[-2])
        assert (last["choices"] == [] and last["usage"]["completion_tokens"] == 3) is has_usage


def test_6_connections_and_lengths(live: Live, scene: str) -> None:
    host, _, port = live.url.removeprefix("http://").partition(":")
    body = json.dumps(chat("What?", scene, max_tokens=2))
    kept = http.client.HTTPConnection(host, int(port), timeout=300)
    for _ in range(2):  # the same connection
        kept.request("POST", PATH, body, {"Content-Type": "application/json"})
        answer = kept.getresponse()
        assert answer.getheader("Transfer-Encoding") is None
        assert len(answer.read()) == int(answer.getheader("Content-Length") or 0) > 0
    closed = http.client.HTTPConnection(host, int(port), timeout=300)
    closed.request("POST", PATH, body, {"Connection": "close", "Host": host})
    answer = closed.getresponse()
    assert answer.getheader("Connection") == "close" and b"choices" in answer.read()
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda number: live.post(PATH, chat("What?", scene, max_tokens=2)).status_code, range(16)))
    assert done == [200] * 16


@pytest.fixture(scope="module")
def small(tiny: Any) -> Iterator[Live]:
    """A server with one slot and no queue."""
    with serving(tiny, max_batch=1, limits=Limits(queue=0)) as running:
        yield running


def test_7_what_is_broken_is_400_and_what_is_full_is_429(live: Live, small: Live, scene: str) -> None:
    for image in ("data:image/png;base64,AAAA", "data:image/png;base64,", "data:image/png;base64,*", "nothing"):
        assert live.post(PATH, chat("What?", image)).status_code == 400
    assert live.post(PATH, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}).status_code == 400
    with small.service.admission.reserve():
        full = small.post(PATH, chat("What?", scene))
    assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["code"] == "queue_full"
    assert small.post(PATH, chat("What?", scene, max_tokens=2)).status_code == 200


def test_8_keys_are_optional_and_the_model_has_a_name(live: Live) -> None:
    for headers in ({}, {"Authorization": "Bearer whatever"}):
        assert live.get("/v1/models", headers=headers).json()["data"][0]["id"] == MODEL
    assert live.post(PATH, {**chat("Hello"), "model": "gpt-4o"}).status_code == 404
    body = chat("Hello", max_tokens=1)
    del body["model"]
    assert live.post(PATH, body).status_code == 200


def test_9_the_api_with_and_without_v1(live: Live, scene: str) -> None:
    body = chat("What?", scene, max_tokens=3)
    assert text_of(live.post("/chat/completions", body)) == text_of(live.post(PATH, body))
    assert live.get("/models").json() == live.get("/v1/models").json()


def test_10_a_slow_queue_refuses_early(tiny: Any) -> None:
    """A verifier gives up after 30 s, so a request that would wait longer than 20 s is refused at once."""
    with serving(tiny, max_batch=1, limits=Limits(queue=8)) as running, ExitStack() as stack:
        admission = running.service.admission
        admission.finished(100.0)  # requests that take 100 s
        for _ in range(2):  # one that is running, and one that waits
            stack.enter_context(admission.reserve())
        found = running.post(PATH, chat("What?"))
        assert found.status_code == 429 and "would wait about 100 s" in found.json()["error"]["message"]
        assert 1 <= int(found.headers["retry-after"]) <= 60


def test_11_photographs_of_several_megabytes(live: Live) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((2400, 2000), 90).convert("RGB").save(buffer, "PNG")
    assert len(buffer.getvalue()) > 4_000_000
    image = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    assert live.post(PATH, chat("What?", image, max_tokens=2)).status_code == 200
