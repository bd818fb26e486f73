"""32 clients with good, bad and broken requests, some of which leave: nothing leaks, and the counts agree."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from helpers.serving import Live, chat, serving, wait_until

from mindone.pipelines.image_to_text.serve.options import Limits

PATH = "/v1/chat/completions"
CLIENTS, REQUESTS = 32, 6


@pytest.fixture(scope="module")
def busy(tiny: Any) -> Iterator[Live]:
    # The queue has room for all: clients that leave early send their next request before the server has noticed.
    limits = Limits(queue=CLIENTS * REQUESTS, queue_seconds=3600.0, body_bytes=2**20)
    with serving(tiny, max_batch=4, limits=limits) as running:
        yield running


def leave(live: Live, body: dict[str, Any], size: int) -> None:
    """Send a request, read some bytes of its answer, and close the connection."""
    host, _, port = live.url.removeprefix("http://").partition(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        connection.recv(size)


def client(live: Live, scene: str, seed: int) -> Counter[str]:
    """Make some requests; return what came of them."""
    chance, seen = random.Random(seed), Counter[str]()
    for _ in range(REQUESTS):
        kind = chance.choice(("whole", "stream", "bad", "broken", "leaves", "leaves early", "huge", "slow"))
        fields = {"max_tokens": chance.randint(1, 12), "temperature": 1, "seed": seed}
        body = chat("What is this?", chance.choice((scene, None)), **fields)
        if kind == "whole":
            found = live.post(PATH, body)
            assert found.status_code == 200, found.text
            seen["tokens"] += found.json()["usage"]["completion_tokens"]
            seen["answers"] += 1
        elif kind == "stream":
            found = live.post(PATH, {**body, "stream": True, "stream_options": {"include_usage": True}})
            data = [part for part in found.text.split("\n\n") if part.startswith("data: {")]
            seen["tokens"] += json.loads(data[-1][len("data: ") :])["usage"]["completion_tokens"]
            seen["answers"] += 1
        elif kind == "bad":
            assert live.post(PATH, {**body, "temperature": -1}).status_code == 400
        elif kind == "broken":
            assert live.post(PATH, chat("What?", "data:image/png;base64,AAAA")).status_code == 400
        elif kind == "huge":
            with suppress(httpx.TransportError):  # the server may close the connection before the body is sent
                assert live.post(PATH, {**body, "user": "x" * 2**21}).status_code == 413
        elif kind == "slow":
            with live.client() as slow, slow.stream("POST", PATH, json={**body, "stream": True}) as found:
                for _ in found.iter_raw(20):
                    time.sleep(0.005)
            seen["answers"] += 1
        else:
            leave(live, {**body, "stream": True, "max_tokens": 300, "ignore_eos": True}, 1 if kind == "leaves" else 0)
            seen["left"] += 1
    return seen


def test_nothing_leaks(busy: Live, scene: str) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        seen = sum(pool.map(lambda seed: client(busy, scene, seed), range(CLIENTS)), Counter[str]())
    assert seen["answers"] > 30 and seen["left"] > 30
    last = busy.post(PATH, chat("What?", max_tokens=1))  # behind all others in the queue
    assert last.status_code == 200
    engine = busy.service.model.engine
    assert engine is not None
    # Those whose clients left end at their next step.
    wait_until(lambda: (engine.free, len(engine), busy.service.admission.active) == (4, 0, 0))
    assert busy.metric("vllm:num_requests_running") == busy.metric("vllm:num_requests_waiting") == 0
    finished = busy.metric("vllm:request_success_total")
    assert finished >= seen["answers"] + 1  # and those that were complete before their clients left
    assert busy.metric("vllm:generation_tokens_total") >= seen["tokens"] + 1
    assert finished + busy.metric("share4v:requests_cancelled_total") >= seen["answers"] + seen["left"] + 1
