"""How requests are read and prepared in threads: what one of them waits for must not stop the others."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from mindone.models.share4v.generation import grammar_trial
from mindone.pipelines.image_to_text.serve import service as service_module
from mindone.pipelines.image_to_text.serve.errors import ApiError
from mindone.pipelines.image_to_text.serve.generation import _error_of
from mindone.pipelines.image_to_text.serve.http import ClientLeftError
from mindone.pipelines.image_to_text.serve.ollama_api import _turn as ollama_turn
from mindone.pipelines.image_to_text.serve.openai_requests import read_messages
from mindone.pipelines.image_to_text.serve.options import Limits, ServerOptions
from mindone.pipelines.image_to_text.serve.remote_images import ImageDownloader
from mindone.pipelines.image_to_text.serve.routes import Handlers
from mindone.pipelines.image_to_text.serve.service import Service
from mindone.pipelines.image_to_text.serve.value_types import Integer, ListOf, Number


class Blocking:
    """A builder of prompts that does not return before it is released."""

    def __init__(self) -> None:
        self.started, self.released = threading.Semaphore(0), threading.Event()

    def text(self, text: str) -> Any:
        self.started.release()
        assert self.released.wait(300)
        raise ApiError(400, "no prompt")


def service(builder: Any, **limits: Any) -> Service:
    """A service that believes its model is loaded."""
    options = ServerOptions(model_name="m", max_batch=1, allow_url_hosts=("*",), limits=Limits(**limits))
    made = Service(options, lambda: None)  # type: ignore[arg-type, return-value]
    made.model.status, made.builder = "ready", builder
    return made


def request(left: asyncio.Event) -> Request:
    body = json.dumps({"prompt": "Hello"}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await left.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "headers": [], "path": "/tokenize"}, receive)


def test_a_request_without_generation_counts_until_it_is_answered_and_ends_with_its_client() -> None:
    builder = Blocking()
    made = service(builder, queue=0)

    async def run() -> None:
        left = asyncio.Event()
        answering = asyncio.create_task(Handlers(made).tokenize(request(left)))
        assert await asyncio.to_thread(builder.started.acquire, timeout=300)
        assert made.admission.active == 1
        with pytest.raises(ApiError, match="queue is full"):  # so that its images are not in memory, too
            await Handlers(made).tokenize(request(left))
        left.set()
        with pytest.raises(ClientLeftError):
            await asyncio.wait_for(answering, 60)
        assert made.admission.active == 0

    try:
        asyncio.run(run())
    finally:
        builder.released.set()


class Schema(dict[str, Any]):
    """One of which a test can tell whether it is still in memory."""


def test_the_schema_of_a_client_that_left_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else clients that ask for slow ones and leave at once would keep the compilers from all others."""
    started, released, compiled = threading.Semaphore(0), threading.Event(), set()

    def held(pipeline: Any, shape: Any, *_: Any) -> None:
        compiled.add(shape["regex"])
        started.release()
        assert released.wait(300)

    monkeypatch.setattr(service_module, "compile_shape", held)
    made = service(None, schema_seconds=100.0)
    made.model.pipeline = object()  # type: ignore[assignment]

    async def run() -> None:
        busy = [asyncio.create_task(made.compile({"regex": f"busy {number}"}, "regex")) for number in range(2)]
        for _ in busy:
            assert await asyncio.to_thread(started.acquire, timeout=300)
        schema = Schema(regex="left")
        memory, leaving = weakref.ref(schema), asyncio.create_task(made.compile(schema, "regex"))
        del schema
        await asyncio.sleep(0)
        assert made._compilers._work_queue.qsize() == 1
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        del leaving
        await asyncio.sleep(0)
        gc.collect()
        assert memory() is None
        released.set()
        await asyncio.gather(*busy, made.compile({"regex": "next"}, "regex"))

    try:
        asyncio.run(run())
    finally:
        released.set()
        made._compilers.shutdown()
    assert compiled == {"busy 0", "busy 1", "next"}


class Compiler:
    """In place of a model's compiler of grammars."""

    compiled = 0

    def has(self, text: str) -> bool:
        return False

    def constraint(self, schema: Any, regex: Any) -> None:
        self.compiled += 1


def compiling(monkeypatch: pytest.MonkeyPatch) -> tuple[Service, Compiler, threading.Semaphore]:
    """A service whose trial compilations run until they are ended, and a semaphore that counts those that run."""
    running = threading.Semaphore(0)

    class Endless(grammar_trial.subprocess.Popen):  # type: ignore[name-defined, misc]
        def __init__(self, command: list[str], **keywords: Any) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(3600)"], **keywords)
            running.release()

    monkeypatch.setattr(grammar_trial.subprocess, "Popen", Endless)
    compiler = Compiler()
    made = service(Blocking(), schema_seconds=10_000.0)
    made.model.pipeline = SimpleNamespace(model=SimpleNamespace(grammars=compiler))  # type: ignore[assignment]
    return made, compiler, running


def test_a_compilation_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    made, compiler, running = compiling(monkeypatch)

    async def run() -> None:
        for number in range(4):  # more than can run at a time
            task = asyncio.create_task(made.compile({"schema": {"const": number}}, "response_format"))
            assert await asyncio.to_thread(running.acquire, timeout=300)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not made._work

    try:
        asyncio.run(run())
    finally:
        made._compilers.shutdown()  # waits for the threads, so that this also tests that they have ended
    assert compiler.compiled == 0


def test_what_waits_when_the_service_ends_gets_the_answer_of_a_closing_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, compiler, running = compiling(monkeypatch)
    builder = made.builder
    assert isinstance(builder, Blocking)

    async def run() -> None:
        schemas = [asyncio.create_task(made.compile({"schema": {"const": number}}, "schema")) for number in range(4)]
        prompts = [asyncio.create_task(made.prepare(lambda _: builder.text(""), {}, False)) for _ in range(5)]
        for _ in range(2):
            assert await asyncio.to_thread(running.acquire, timeout=300)
        for _ in range(4):
            assert await asyncio.to_thread(builder.started.acquire, timeout=300)
        arriving = asyncio.create_task(made.arrived(asyncio.sleep(3600, b"")))
        await asyncio.sleep(0)
        made.end()
        late = asyncio.create_task(made.prepare(lambda _: None, {}, False))
        for ended in (*schemas, *prompts, arriving, late):  # also what a thread works on, which nothing can end
            with pytest.raises(ApiError, match="the server is shutting down") as found:
                await asyncio.wait_for(ended, 300)
            assert (found.value.status, found.value.code) == (503, "draining")
        with pytest.raises(ApiError, match="the server is shutting down"):
            made.generate(None, 0.0)  # a request whose preparation had just ended

    try:
        asyncio.run(run())
    finally:
        builder.released.set()
        made._compilers.shutdown()  # waits for the threads, so that this also tests that they have ended
    assert compiler.compiled == 0 and not made._work


def test_a_compilation_is_ended_without_waiting_for_the_start_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop ends it, and a busy machine may need seconds to start a process."""
    starting, ended, in_time = threading.Event(), threading.Event(), []

    class Slow(grammar_trial.subprocess.Popen):  # type: ignore[name-defined, misc]
        def __init__(self, command: list[str], **keywords: Any) -> None:
            starting.set()
            in_time.append(ended.wait(60))
            super().__init__([sys.executable, "-c", "import time; time.sleep(3600)"], **keywords)

    monkeypatch.setattr(grammar_trial.subprocess, "Popen", Slow)
    trial = grammar_trial.Trial()
    with ThreadPoolExecutor(1) as pool:
        refusal = pool.submit(trial.refusal, "{}", 10_000.0)
        assert starting.wait(300)
        trial.end()
        ended.set()
        with pytest.raises(grammar_trial.TrialEndedError):
            refusal.result(300)
    assert in_time == [True], "`end` has waited for the process"


def test_the_time_of_a_preparation_is_bounded() -> None:
    builder = Blocking()
    made = service(builder, request_seconds=0.05)

    async def run() -> None:
        with pytest.raises(ApiError, match="took longer than the limit") as found:
            await asyncio.wait_for(Handlers(made).tokenize(request(asyncio.Event())), 60)
        assert found.value.status == 504 and made.admission.active == 0

    try:
        asyncio.run(run())
    finally:
        builder.released.set()


def test_downloads_do_not_stop_other_requests() -> None:
    made = service(None)
    ends = threading.Event()

    async def run() -> None:
        downloads = []
        for _ in range(20):
            values, has_urls = await made.read(
                b'{"messages": [{"content": [{"image": "HTTPS://slow.example"}]}]}', dict
            )
            downloads.append(asyncio.create_task(made.prepare(lambda values: ends.wait(300), values, has_urls)))
        answer = made.compute(b'{"prompt": "See http://slow.example"}', dict, lambda values: values["prompt"])
        assert await asyncio.wait_for(answer, 60) == "See http://slow.example"
        assert not any(one.done() for one in downloads)
        ends.set()
        assert all(await asyncio.gather(*downloads))

    try:
        asyncio.run(run())
    finally:
        ends.set()


def test_a_download_ends_with_its_client() -> None:
    made = service(None)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts connections, and never answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        downloader = ImageDownloader(("*",), Limits(url_seconds=10_000.0), is_public=lambda address: True)
        accepted = []

        def fetch(values: Any) -> None:
            for _ in range(8):
                with suppress(ApiError):  # as a request with several images
                    downloader.fetch(url, "image")

        async def run() -> None:
            listener.settimeout(300)
            for _ in range(6):  # more than can run at a time
                task = asyncio.create_task(made.prepare(fetch, {}, True))
                accepted.append((await asyncio.to_thread(listener.accept))[0])
                assert await asyncio.to_thread(accepted[-1].recv, 10)  # the request: the download waits for its answer
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        try:
            asyncio.run(run())
        finally:
            for connection in (listener, *accepted):
                connection.close()
            made._downloaders.shutdown()  # waits for the threads, so that this also tests that they have ended


def test_which_errors_of_the_engine_are_the_clients(caplog: pytest.LogCaptureFixture) -> None:
    from mindone.models.share4v.generation.constraints import GrammarError

    grammar = _error_of(GrammarError("the grammar cannot be followed any further"))
    assert (grammar.status, grammar.code) == (400, "invalid_schema") and not caplog.records
    other = _error_of(ValueError("operands could not be broadcast together"))
    assert other.status == 500 and "broadcast" not in other.message and "broadcast" in caplog.text


WRONG = ([], {}, [[]], {"a": 1}, 1, 1.5, True, None, "x", "")


@pytest.mark.parametrize("read", [read_messages, lambda messages: [ollama_turn(one, "m") for one in messages]])
def test_values_of_every_kind_in_every_position_are_errors_of_the_client(read: Any) -> None:
    def variants(value: Any) -> Any:
        yield from WRONG
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in pairs:
            for other in variants(inner):
                changed = value.copy()
                changed[key] = other
                yield changed

    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "b", "detail": "low"}}]
    for content in (parts, "text"):
        message = {"role": "user", "content": content, "images": ["b"], "tool_calls": None}
        for variant in variants(message):
            try:
                read([variant])
            except ApiError as error:
                assert error.status == 400


def test_a_list_is_checked_without_a_name_for_each_of_its_values() -> None:
    formatted = []

    class Name(str):
        def __format__(self, spec: str) -> str:
            formatted.append(spec)
            return str(self)

    kind = ListOf(Integer(0), 1000)
    assert kind.check(list(range(1000)), Name("tokens")) == tuple(range(1000)) and not formatted
    with pytest.raises(ApiError, match=r"^tokens\[999\] must be an integer"):
        kind.check([*range(999), -1], Name("tokens"))


def test_a_large_value_is_not_written_out_to_be_shown() -> None:
    written = []

    class Loud:
        def __repr__(self) -> str:
            written.append(1)
            return "loud"

    with pytest.raises(ApiError, match=r"temperature must be a number from 0 to 2, got \[\[loud, "):
        Number(0, 2).check([[Loud() for _ in range(1000)]] * 1000, "temperature")
    assert len(written) < 50
