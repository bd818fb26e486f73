"""Threads that read inputs: a slow host delays its own images and no others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import listed, png

from mindone.pipelines.image_to_text.dataset.inference import prefetch
from mindone.pipelines.image_to_text.dataset.inference.prefetch import Prefetcher
from mindone.pipelines.image_to_text.dataset.readers import read_item
from mindone.pipelines.image_to_text.dataset.readers.downloads import DownloadOptions
from mindone.pipelines.image_to_text.dataset.readers.read_pool import MAX_WAITING, ReadPool, waiting_for_server
from mindone.pipelines.image_to_text.dataset.state.tasks import Task

SECONDS = 300  # after which a test that hangs fails


def test_functions_that_wait_do_not_count() -> None:
    release, lock, running, most = threading.Event(), threading.Lock(), [0], [0]
    began_to_wait = threading.Semaphore(0)

    def count(change: int) -> None:
        with lock:
            running[0] += change
            most[0] = max(most[0], running[0])

    def work() -> None:
        count(1)
        time.sleep(0.001)  # so that a third one would be seen
        count(-1)

    def slow(number: int) -> int:
        work()
        with waiting_for_server():
            began_to_wait.release()
            release.wait(SECONDS)
        work()
        return number

    def fast(number: int) -> int:
        work()
        return number

    changes = threading.Semaphore(0)
    with ReadPool(2, "test", changes.release) as pool:
        waiting: list[Future[int]] = [pool.submit(slow, number) for number in range(MAX_WAITING)]
        done = [pool.submit(fast, number) for number in range(50)]
        assert [future.result(SECONDS) for future in done] == list(range(50))
        assert all(began_to_wait.acquire(timeout=SECONDS) for _ in waiting)  # the last may do so after the fast ones
        assert not any(future.done() for future in waiting) and pool.waiting == MAX_WAITING
        release.set()
        assert [future.result(SECONDS) for future in waiting] == list(range(MAX_WAITING))
        # One for each that ended, and one for each that began to wait; the last may be told after its result.
        assert all(changes.acquire(timeout=SECONDS) for _ in range(50 + 2 * MAX_WAITING))
    assert most[0] <= 2


def test_an_error_is_that_of_its_function_and_closing_cancels_the_rest() -> None:
    started, release = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        release.wait(SECONDS)

    pool = ReadPool(1, "test")
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(SECONDS)
    first, second = pool.submit(block), pool.submit(block)
    assert started.wait(SECONDS)
    pool.close()
    release.set()
    first.result(SECONDS)
    with pytest.raises(CancelledError):
        second.result(SECONDS)
    with waiting_for_server():  # in a thread that is not a pool's, this does nothing
        pass


class Handler(BaseHTTPRequestHandler):
    """Answers at once by the name localhost; by the address, when all of those have been answered."""

    fast_served = threading.Semaphore(0)
    release = threading.Event()

    def do_GET(self) -> None:
        if self.headers["Host"].startswith("127."):
            self.release.wait(SECONDS)
        body = png(int(self.path.strip("/")))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


def test_images_of_other_hosts_are_read_while_one_host_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thirty images are of the slow host, which is more than there are threads and images read ahead."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hosts = ["127.0.0.1"] * 30 + ["localhost"] * 10
    urls = [f"http://{host}:{server.server_port}/{number}" for number, host in enumerate(hosts)]
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    downloads = DownloadOptions(url_private=True)

    def prepare(task: Task, *arguments: Any) -> Any:
        return task.item.number, read_item(task.item, downloads)

    monkeypatch.setattr(prefetch, "prepare", prepare)
    tasks = (Task(item, ("What?",), (None,)) for item in listed(tmp_path / "urls.txt"))
    encoder: Any = None
    try:
        with Prefetcher(tasks, encoder, workers=2, ahead=4) as prefetcher:
            first: list[Any] = [prefetcher.take() for _ in range(10)]
            assert {number for number, _ in first} == set(range(30, 40))
            assert not prefetcher.ready and not prefetcher.exhausted
            Handler.release.set()
            rest: list[Any] = [prefetcher.take() for _ in range(30)]
            assert {number for number, _ in rest} == set(range(30)) and prefetcher.exhausted
        assert all(picture.frames[0] == png(number) for number, picture in (*first, *rest))
    finally:
        Handler.release.set()
        server.shutdown()
        server.server_close()


class Arrivals(Iterator[Any]):
    """Tasks that arrive later: it ends when none has arrived, and goes on when others have."""

    def __init__(self, *tasks: Any) -> None:
        self.arrived = deque(tasks)

    def __next__(self) -> Any:
        if not self.arrived:
            raise StopIteration
        return self.arrived.popleft()


def test_tasks_that_arrive_later_do_not_wait_for_a_slow_host(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, release = threading.Event(), threading.Event()

    def prepare(task: Any, *arguments: Any) -> Any:
        if task == "slow":
            with waiting_for_server():
                asked.set()
                release.wait(SECONDS)
        return task

    monkeypatch.setattr(prefetch, "prepare", prepare)
    tasks, encoder = Arrivals("slow"), None
    try:
        with Prefetcher(tasks, encoder, workers=1, ahead=1) as prefetcher:  # type: ignore[arg-type]
            assert asked.wait(SECONDS) and not prefetcher.ready and not prefetcher.exhausted
            taken: Future[Any] = Future()
            threading.Thread(target=lambda: taken.set_result(prefetcher.take()), daemon=True).start()
            with pytest.raises(FutureTimeout):
                taken.result(0.3)  # `take` waits: nothing else has arrived
            tasks.arrived.append("later")
            assert taken.result(SECONDS) == "later"
            assert not prefetcher.ready and not prefetcher.exhausted
            release.set()
            last: Any = prefetcher.take()
            assert last == "slow" and prefetcher.exhausted and not prefetcher.ready
            tasks.arrived.append("last")
            prefetcher.refill()
            assert not prefetcher.exhausted
            last = prefetcher.take()
            assert last == "last" and prefetcher.exhausted
    finally:
        release.set()
