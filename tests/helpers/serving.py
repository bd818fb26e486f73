"""A live server in a thread of the test process, so that tests can compare with its own model."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import BaseRoute

from helpers.paths import ROOT
from mindone.pipelines.image_to_text.answering import ImageTextToTextPipeline
from mindone.pipelines.image_to_text.serve import server
from mindone.pipelines.image_to_text.serve.options import Limits, ServerOptions
from mindone.pipelines.image_to_text.serve.service import Service

MODEL = "sharegpt4v-tiny"
SCENE = ROOT / "examples" / "sharegpt_4v" / "scene.png"
SECONDS = 300.0  # after which something hangs; a busy machine may need a minute for what usually takes a second


@dataclass
class Live:
    """A running server.

    Attributes:
        url: its address.
        service: what is behind its routes.
        pipeline: its model.
        log: the records of its access log.
        loop: its event loop.
        stop: ends it; to be called in the loop.
    """

    url: str
    service: Service
    pipeline: ImageTextToTextPipeline | None
    loop: asyncio.AbstractEventLoop
    stop: Callable[[], None]
    log: list[dict[str, Any]] = field(default_factory=list)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **options)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0] == name)


class Steps:
    """Lets the model make steps one at a time."""

    def __init__(self, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = live.service.model.engine
        assert engine is not None
        self.engine = engine
        self._allowed = threading.Semaphore(0)
        self._made = threading.Semaphore(0)
        self.is_free = False
        step = engine.step

        def controlled() -> Any:
            if not self.is_free:
                self._allowed.acquire(timeout=SECONDS)
            done = step()
            self._made.release()
            return done

        monkeypatch.setattr(engine, "step", controlled)

    def make(self) -> None:
        """Make one step and wait for its end."""
        self._allowed.release()
        assert self._made.acquire(timeout=SECONDS)

    def allow(self, count: int) -> None:
        """Let it make so many steps, and do not wait for them."""
        self._allowed.release(count)

    def run(self) -> None:
        """Let it make all further steps."""
        self.is_free = True
        self._allowed.release()


@contextmanager
def serving(
    loaded: ImageTextToTextPipeline | None, own_routes: Sequence[BaseRoute] = (), **options: Any
) -> Iterator[Live]:
    """Run a server inside the `with` block.

    Args:
        loaded: its pipeline, or None for a server without a model.
        own_routes: further routes.
        options: of ServerOptions; without limits among them, a request may wait for its turn.
    """
    limits = Limits(queue_seconds=SECONDS)
    chosen = ServerOptions(**{"model_name": MODEL, "port": 0, "limits": limits, **options})
    listener = server.bind(chosen)
    ready: Future[None] = Future()
    log: list[dict[str, Any]] = []
    load = None if loaded is None else lambda: loaded
    run = server.Run(chosen, load, 2**28, lambda: ready.set_result(None), log.append, own_routes)

    def serve() -> None:
        try:
            asyncio.run(run.serve(listener))
        except Exception as error:
            if not ready.done():
                ready.set_exception(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ready.result(timeout=SECONDS)
    yield Live(server.address_of(listener), run.service, loaded, run.loop, run.stop, log)
    if thread.is_alive():  # else the test has stopped it
        with suppress(RuntimeError):
            run.loop.call_soon_threadsafe(run.stop)
    thread.join(timeout=SECONDS)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread does at once; fails if it hangs."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)  # each look takes time from the thread that is waited for


def data_uri(path: Path, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def chat(question: str, image: str | None = None, **fields: Any) -> dict[str, Any]:
    """The body of a chat completions request."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        parts.append({"type": "image_url", "image_url": {"url": image}})
    return {"model": MODEL, "messages": [{"role": "user", "content": parts}], **fields}
