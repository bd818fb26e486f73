"""Disconnects, failures, shutdown, caches and progress: what is counted must be right whatever clients do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.serving import Live, Steps, chat, serving, wait_until

from mindone.pipelines.image_to_text.serve import server
from mindone.pipelines.image_to_text.serve.options import Limits, ServerOptions

PATH = "/v1/chat/completions"


@pytest.fixture
def own(tiny: Any) -> Iterator[Live]:
    """A server of two slots for one test."""
    with serving(tiny, max_batch=2, limits=Limits(drain_seconds=1.0)) as running:
        yield running


def raw(live: Live, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent."""
    host, _, port = live.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=300)
    data = json.dumps(body).encode()
    connection.sendall(
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (PATH.encode(), len(data))
    )
    connection.sendall(data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_at_the_next_step(
    own: Live, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    steps = Steps(own, monkeypatch)
    connection = raw(own, chat("Hello", max_tokens=400, ignore_eos=True, stream=stream))
    wait_until(lambda: len(steps.engine) == 1)
    steps.make()
    assert (steps.engine.free, len(steps.engine)) == (1, 1)
    connection.close()
    wait_until(lambda: own.service.admission.active == 0)  # the server has noticed
    steps.make()
    assert (steps.engine.free, len(steps.engine)) == (2, 0)
    steps.run()
    assert own.post(PATH, chat("Hello", max_tokens=2)).status_code == 200
    assert own.metric("share4v:requests_cancelled_total") == 1
    assert own.log[0]["client_left"]


def test_an_error_in_one_request_ends_only_that_one(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindone.models.share4v.generation import continuous_batch

    check = continuous_batch.check_finite
    broken = {"next": False}

    def sometimes(logits: np.ndarray) -> np.ndarray:
        if broken["next"]:
            broken["next"] = False
            return check(np.full_like(logits, np.nan))
        return check(logits)

    monkeypatch.setattr(continuous_batch, "check_finite", sometimes)
    wanted = own.post(PATH, chat("Hello", max_tokens=5)).json()["choices"][0]["message"]["content"]
    broken["next"] = True
    failed = own.post(PATH, chat("Hello", max_tokens=5))
    assert failed.status_code == 500 and failed.json()["error"]["code"] == "not_finite"
    assert failed.headers["x-should-retry"] == "false"
    assert own.post(PATH, chat("Hello", max_tokens=5)).json()["choices"][0]["message"]["content"] == wanted


def test_an_error_of_a_whole_batch_starts_another_engine(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = own.service.model.engine

    def fail() -> None:
        raise RuntimeError("no memory for this step")

    monkeypatch.setattr(engine, "step", fail)
    found = own.post(PATH, chat("Hello", max_tokens=5))
    assert found.status_code == 500 and "no memory" not in found.text
    wait_until(lambda: own.service.model.engine not in (engine, None))
    assert own.post(PATH, chat("Hello", max_tokens=5)).status_code == 200
    assert own.get("/health").status_code == 200


def test_a_step_without_memory_ends_only_the_request_that_came_last(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """std::bad_alloc in a kernel comes as MemoryError."""
    model = own.service.model
    assert model.engine is not None
    engine, decoder = model.engine, model.engine._batch._decoder
    steps = Steps(own, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(own.post, PATH, chat("Hello", max_tokens=20, ignore_eos=True))
        wait_until(lambda: len(engine))
        steps.make()
        prefill = decoder.prefill

        def without_memory(*arguments: Any) -> Any:
            monkeypatch.setattr(decoder, "prefill", prefill)
            raise MemoryError("share4v_layer got no memory at 0x7fff")

        monkeypatch.setattr(decoder, "prefill", without_memory)
        second = pool.submit(own.post, PATH, chat("Goodbye", max_tokens=5))
        wait_until(lambda: len(engine) == 2)
        steps.run()
        failed, went_on = second.result(300), first.result(300)
    assert failed.status_code == 503 and failed.json()["error"]["code"] == "out_of_memory" and "0x" not in failed.text
    assert int(failed.headers["retry-after"]) >= 1
    assert went_on.json()["usage"]["completion_tokens"] == 20
    assert own.post(PATH, chat("Hello", max_tokens=20, ignore_eos=True)).json()["choices"] == went_on.json()["choices"]
    assert model.engine is engine and own.get("/health").status_code == 200


def test_an_engine_that_cannot_be_made_ends_the_server_with_a_reason(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindone.models.share4v.generation import engine as module

    failures: list[Exception] = []
    with serving(tiny, max_batch=1) as running:
        model = running.service.model

        def fail(*arguments: Any) -> None:
            raise RuntimeError("no memory for the KV cache")

        monkeypatch.setattr(module.Engine, "__init__", fail)
        monkeypatch.setattr(model, "_on_failure", failures.append)
        monkeypatch.setattr(model.engine, "step", fail)
        assert running.post(PATH, chat("Hello", max_tokens=5)).status_code == 500
        wait_until(lambda: model.status == "failed")
        assert running.get("/health").status_code == 503
    assert str(failures[0]) == "no memory for the KV cache"


def test_an_error_of_the_program_is_not_the_clients(
    own: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mindone.models.share4v.generation import continuous_batch

    def broken(logits: np.ndarray) -> np.ndarray:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(continuous_batch, "check_finite", broken)
    failed = own.post(PATH, chat("Hello", max_tokens=5))
    assert failed.status_code == 500 and failed.json()["error"]["code"] == "internal_error"
    assert "broadcast" not in failed.text and "broadcast" in caplog.text
    biased = own.post(PATH, chat("Hello", logit_bias={"999999999": 1}))
    assert biased.status_code == 400 and biased.json()["error"]["param"] == "logit_bias"


def test_time_in_the_queue_is_bounded(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tiny, max_batch=1, limits=Limits(queue_seconds=600.0, request_seconds=600.0)) as running:
        steps = Steps(running, monkeypatch)
        first = raw(running, chat("Hello", max_tokens=3, ignore_eos=True))
        wait_until(lambda: len(steps.engine) == 1)
        steps.make()  # the first has left the queue; the limit is for the second
        limits = Limits(queue_seconds=0.2, request_seconds=600.0)
        monkeypatch.setattr(running.service, "options", replace(running.service.options, limits=limits))
        waited = running.post(PATH, chat("Hello"))
        assert waited.status_code == 429 and waited.json()["error"]["code"] == "queue_timeout"
        steps.run()
        assert first.recv(100).startswith(b"HTTP/1.1 200")


def test_the_time_of_a_request_is_bounded(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tiny, max_batch=1, limits=Limits(queue_seconds=600.0, request_seconds=0.2)) as running:
        steps = Steps(running, monkeypatch)  # none is made before the answer
        found = running.post(PATH, chat("Hello", max_tokens=400, ignore_eos=True))
        assert found.status_code == 504 and found.json()["error"]["code"] == "request_timeout"
        steps.run()


def test_shutdown_finishes_what_is_running_and_refuses_what_is_new(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tiny, max_batch=1) as running:
        steps = Steps(running, monkeypatch)
        first = raw(running, chat("Hello", max_tokens=3, ignore_eos=True))
        wait_until(lambda: len(steps.engine) == 1)
        running.loop.call_soon_threadsafe(running.stop)
        wait_until(lambda: running.service.admission.is_draining)
        health, refused = running.get("/health"), running.post(PATH, chat("Hello"))
        assert (health.status_code, refused.status_code) == (503, 503)
        assert health.json()["error"]["code"] == "draining" and "retry-after" in refused.headers
        steps.run()
        answer = first.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200") and b'"completion_tokens":3' in answer


def test_shutdown_does_not_wait_forever(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(own, monkeypatch)
    first = raw(own, chat("Hello", max_tokens=400, ignore_eos=True))
    wait_until(lambda: len(steps.engine) == 1)
    own.loop.call_soon_threadsafe(own.stop)
    wait_until(lambda: steps.engine._is_closed)  # after drain_seconds
    steps.run()
    assert first.recv(10_000).startswith(b"HTTP/1.1 503")


def test_requests_are_ended_in_the_thread_that_has_their_tasks(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another one it would come between two steps of a task: after it has looked, and before it submits work."""
    pools = [own.service._readers, own.service._preparers, own.service._downloaders, own.service._compilers]
    threads: list[int] = []
    loops: list[int] = []
    for pool in pools:
        monkeypatch.setattr(pool, "shutdown", lambda **_: threads.append(threading.get_ident()))
    own.loop.call_soon_threadsafe(lambda: loops.append(threading.get_ident()))
    own.loop.call_soon_threadsafe(own.stop)
    wait_until(lambda: own.loop.is_closed())
    assert set(threads) == set(loops) and len(threads) >= len(pools)


def test_a_second_server_on_the_same_port(live: Live) -> None:
    port = int(live.url.rpartition(":")[2])
    with pytest.raises(server.PortInUseError, match="in use by another program"):
        server.bind(ServerOptions(model_name="x", port=port))


def test_health_while_the_model_loads_and_when_it_fails(tiny: Any) -> None:
    import httpx

    loading, failures = threading.Event(), []
    options = ServerOptions(model_name="m", port=0)

    def load() -> Any:
        loading.wait(300)
        raise FileNotFoundError("no such checkpoint")

    listener = server.bind(options)
    url = server.address_of(listener)

    def serve() -> None:
        try:
            server.run(options, load, listener, 2**20, lambda: None, None)
        except server.ModelFailedError as error:
            failures.append(error.__cause__)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for path, method in (("/health", "GET"), ("/v1/models", "GET"), (PATH, "POST")):
        found = httpx.request(method, url + path, json={} if method == "POST" else None, trust_env=False, timeout=300)
        assert found.status_code == 503 and found.json()["error"]["code"] == "loading"
    loading.set()
    thread.join(300)
    assert isinstance(failures[0], FileNotFoundError)


def test_a_second_question_uses_both_caches(own: Live, monkeypatch: pytest.MonkeyPatch, scene: str) -> None:
    own.pipeline.model.forget_values()
    encoded: list[int] = []
    features = own.pipeline.model.image_cache
    encode = features._encode
    monkeypatch.setattr(features, "_encode", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    first = own.post(PATH, chat("Describe this image", scene)).json()
    second = own.post(PATH, chat("How many stars are there?", scene)).json()
    assert sum(encoded) == 1
    usage = second["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert usage["prompt_tokens_details"]["image_tokens"] < cached < usage["prompt_tokens"]
    # The same by another way: the kernels have computed only the rest.
    before = first["usage"]["prompt_tokens_details"]["cached_tokens"]  # the system prompt, by the warm-up
    assert own.metric("vllm:prefix_cache_hits_total") == cached + before
    assert own.metric("vllm:prefix_cache_queries_total") >= usage["prompt_tokens"] + first["usage"]["prompt_tokens"]
    assert own.metric("vllm:mm_cache_hits_total") >= 1
    own.pipeline.model.forget_values()


def test_progress_of_a_prompt(own: Live, scene: str) -> None:
    found = own.post(PATH, chat("What is this?", scene, max_tokens=2, stream=True, return_progress=True))
    data = [json.loads(part[len("data: ") :]) for part in found.text.split("\n\n") if part.startswith("data: {")]
    shown = [one["prompt_progress"] for one in data if "prompt_progress" in one]
    assert shown[-1]["processed"] == shown[-1]["total"] > 20
    processed = [one["processed"] for one in shown]
    assert processed == sorted(processed)
    plain = own.post(PATH, chat("What is that?", scene, max_tokens=2, stream=True))
    assert "prompt_progress" not in plain.text and ": prompt " in plain.text  # comments, which clients skip


def test_pings(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tiny, max_batch=1, limits=Limits(ping_seconds=0.05)) as running:
        steps = Steps(running, monkeypatch)
        first = raw(running, chat("Hello", max_tokens=2, stream=True))
        seen = b""
        while seen.count(b": still working") < 2:
            seen += first.recv(1000)
        steps.run()
        while b"[DONE]" not in seen:
            seen += first.recv(1000)


def test_metrics_agree_with_what_clients_saw(own: Live, scene: str) -> None:
    answers = [own.post(PATH, chat("What?", scene, max_tokens=number)).json() for number in (2, 3, 4)]
    assert own.post(PATH, {"messages": 1}).status_code == 400
    assert own.metric("vllm:generation_tokens_total") == sum(one["usage"]["completion_tokens"] for one in answers)
    assert own.metric("vllm:prompt_tokens_total") == sum(one["usage"]["prompt_tokens"] for one in answers)
    assert own.metric("vllm:request_success_total") == 3
    assert own.metric("vllm:time_to_first_token_seconds_count") == 3
    assert own.metric("vllm:num_requests_running") == own.metric("share4v:answers_admitted") == 0
    assert own.metric("share4v:http_responses_total") >= 4
