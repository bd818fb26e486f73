"""Images at URLs: servers that are busy, fail, opt out or point elsewhere; one that works is asked once."""

from __future__ import annotations

import errno
import json
import re
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import pytest
from helpers.jobs import png

from mindone.pipelines.image_to_text import remote_files
from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.readers import ItemError, downloads
from mindone.pipelines.image_to_text.dataset.readers.downloads import DownloadOptions, HostLimits, ImageDownloads
from mindone.pipelines.image_to_text.dataset.readers.read_pool import ReadPool
from mindone.pipelines.image_to_text.dataset.state.records import record_from_line
from mindone.pipelines.image_to_text.remote_files import Body, Fetched, Fetcher

Answer = tuple[int, dict[str, str], bytes]
SECONDS = 300  # after which a test that hangs fails
OK: Answer = (200, {}, png(7))


class Site(ThreadingHTTPServer):
    """Answers each path as `script(path, count)` says, and notes when each request came, on its own clock."""

    daemon_threads = True

    def __init__(self, script: Callable[[str, int], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.lock = script, threading.Lock()
        self.came: dict[str, list[float]] = {}
        self.replied: dict[str, list[float]] = {}
        self.headers: list[dict[str, str]] = []
        self.running = self.most = 0
        self.is_length_stated = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site, path = self.server, self.path
        with site.lock:
            times = site.came.setdefault(path, [])
            times.append(time.monotonic())
            count = len(times) - 1
            site.headers.append(dict(self.headers))
            site.running += 1
            site.most = max(site.most, site.running)
        status, headers, body = site.script(path, count)
        with site.lock:
            site.running -= 1
            site.replied.setdefault(path, []).append(time.monotonic())
        with suppress(ConnectionError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if site.is_length_stated:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def site(script: Callable[[str, int], Answer]) -> Iterator[Site]:
    with Site(script) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.01)


def fetch(url: str, **options: Any) -> tuple[bytes | str, dict[str, Any]]:
    """Return the image or the reason, and what is recorded about the download."""
    log: dict[str, Any] = {}
    try:
        return ImageDownloads(DownloadOptions(**{"url_private": True, **options})).read(url, log), log
    except ItemError as error:
        return str(error), log


def test_a_server_that_fails_by_chance_is_asked_again() -> None:
    failures = {"/busy": 503, "/broken": 500, "/gateway": 502, "/many": 429}
    with site(lambda path, count: OK if count == 2 else (failures[path], {}, b"")) as server:
        for path in failures:
            assert fetch(server.url + path) == (png(7), {"attempts": 3, "status": 200})
        reason, log = fetch(server.url + "/busy?again", url_attempts=1)
        assert log == {"attempts": 1}  # a failing script breaks the connection without a response
    with site(lambda path, count: (503, {}, b"")) as server:
        reason, log = fetch(server.url + "/busy", url_attempts=2)
        assert reason == "the download failed after 2 attempts: the server answered 503 Service Unavailable"
        assert log == {"attempts": 2, "status": 503}


@pytest.mark.parametrize("status", [500, 503])
def test_pauses_double_whatever_the_server_answers(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(HostLimits, "pause", lambda self, host, seconds: waits.append(seconds))
    reader = ImageDownloads(
        DownloadOptions(url_attempts=4),
        lambda url: Fetched(status, ()),
        lambda seconds: waits.append(seconds),
        lambda: 1.0,
    )
    with pytest.raises(ItemError, match="after 4 attempts"):
        reader.read("http://example.org/a.png", {})
    assert [wait for wait in waits if wait][:3] == [0.01, 0.02, 0.04]


@pytest.mark.parametrize("status", [400, 403, 404, 410, 451])
def test_a_refusal_is_final(status: int) -> None:
    with site(lambda path, count: (status, {}, b"")) as server:
        reason, log = fetch(server.url + "/a.png")
        assert f"the server answered {status}" in str(reason) and log == {"attempts": 1, "status": status}
        assert len(server.came["/a.png"]) == 1


def test_no_request_to_a_host_comes_before_the_time_that_it_named() -> None:
    """Another image of the host waits too; all times are the server's."""

    def script(path: str, count: int) -> Answer:
        return (429, {"Retry-After": "0.7"}, b"") if (path, count) == ("/first", 0) else OK

    with site(script) as server:
        reader = ImageDownloads(DownloadOptions(url_private=True, url_per_host=1))
        assert reader.read(server.url + "/first", {}) == png(7)
        assert reader.read(server.url + "/second", {}) == png(7)
        refused = server.replied["/first"][0]
        assert min(server.came["/first"][1], server.came["/second"][0]) - refused >= 0.7


def test_a_server_that_asks_to_wait_for_hours_is_not_waited_for() -> None:
    with site(lambda path, count: (503, {"Retry-After": "7200"}, b"")) as server:
        reason, log = fetch(server.url + "/a")
    assert "asks to wait longer than 120 s" in str(reason) and log == {"attempts": 1, "status": 503}


@pytest.mark.parametrize(
    ("tag", "options", "is_used"),
    [
        ("noai", {}, False),
        ("noimageai", {}, False),
        ("all, NoIndex", {}, False),
        ("max-image-preview:none", {}, True),
        ("nofollow", {}, True),
        ("otherbot: noai", {}, True),
        ("mindone-share4v: noai", {}, False),
        ("MyBot: noindex, nofollow", {"user_agent_token": "mybot"}, False),
        ("noai", {"disallowed_header_directives": ()}, True),
        ("noai", {"disallowed_header_directives": ("noindex",)}, True),
    ],
)
def test_opt_outs_are_honoured_as_img2dataset_does(tag: str, options: dict[str, Any], is_used: bool) -> None:
    with site(lambda path, count: (200, {"X-Robots-Tag": tag}, png(7))) as server:
        found, log = fetch(server.url + "/a", **options)
        token = options.get("user_agent_token", "mindone-share4v")
        assert server.headers[0]["User-Agent"] == f"Mozilla/5.0 (compatible; {token})"
    assert (found == png(7)) == is_used and log == {"attempts": 1, "status": 200}
    if not is_used:
        assert "its server asks not to use it (X-Robots-Tag: no" in str(found)


def test_requests_to_one_host_are_limited() -> None:
    def script(path: str, count: int) -> Answer:
        deadline = time.monotonic() + 60
        while server.most < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.02)  # so that a third one would be seen
        return OK

    with site(script) as server:
        reader = ImageDownloads(DownloadOptions(url_private=True, url_per_host=2))
        threads = [threading.Thread(target=reader.read, args=(f"{server.url}/{index}", {})) for index in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.came) == 12 and server.most == 2


def test_a_paused_host_delays_no_other() -> None:
    limits = HostLimits(1)
    limits.pause("slow.example", 3600)
    with limits.request("other.example"):
        pass


def test_private_addresses_are_refused_also_after_a_redirect() -> None:
    with site(lambda path, count: OK) as server:
        reason, log = fetch(server.url + "/a", url_private=False)
        assert "an address that is not public: allow such addresses with url_private (--url-private)" in str(reason)
        assert log == {"attempts": 1} and server.came == {}
    for target, expected in (("file:///etc/passwd", "must begin with http"), ("http://[bad", "malformed")):
        with site(lambda path, count, target=target: (302, {"Location": target}, b"")) as server:
            reason, _ = fetch(server.url + "/a")
            assert expected in str(reason)
    with site(lambda path, count: (302, {"Location": f"/{count}"}, b"")) as server:
        assert "more than 5 redirects" in str(fetch(server.url + "/a")[0])
    with site(lambda path, count: OK if path == "/b" else (302, {"Location": "/b"}, b"")) as server:
        assert fetch(server.url + "/a") == (png(7), {"attempts": 1, "status": 200})


def test_a_host_whose_first_address_does_not_answer_is_reached_at_the_next() -> None:
    """As localhost, whose first address is that of IPv6, where most servers do not listen."""
    with site(lambda path, count: OK) as server:
        fetcher = Fetcher(
            max_bytes=10_000,
            max_redirects=0,
            resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"],
            is_public=lambda address: True,
        )
        body = fetcher.fetch(f"http://two.example:{server.server_port}/a.png", 60.0).body
        assert body is not None and body.take() == png(7)


def test_limits_of_size_and_time() -> None:
    with site(lambda path, count: (200, {}, b"x" * 5000)) as server:
        assert "more than 4,999 bytes" in str(fetch(server.url + "/a", url_bytes=4999)[0])
        assert len(server.came["/a"]) == 1

    end = threading.Event()

    def slow(path: str, count: int) -> Answer:
        end.wait(60)
        return OK

    with site(slow) as server:
        reason, log = fetch(server.url + "/a", url_seconds=0.1, url_attempts=2)
        end.set()
        assert "after 2 attempts" in str(reason) and log == {"attempts": 2}


@pytest.mark.parametrize("is_stated", [True, False])
@pytest.mark.parametrize("by_proxy", [False, True])
def test_the_memory_of_downloads_does_not_grow_with_their_number(
    monkeypatch: pytest.MonkeyPatch, is_stated: bool, by_proxy: bool
) -> None:
    """While all threads that may work are busy, images that have arrived wait on the disk."""
    number, size = 8, 2**21
    monkeypatch.setattr(downloads, "IN_MEMORY_BYTES", 2**16, raising=False)
    arrived, sizes, release = threading.Semaphore(0), list[int](), threading.Event()
    image = bytes(range(256)) * (size // 256)
    with site(lambda path, count: (200, {}, image)) as server, ReadPool(1, "test") as pool:
        if by_proxy:
            monkeypatch.setenv("http_proxy", server.url)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
        server.is_length_stated = is_stated
        reader = ImageDownloads(DownloadOptions(url_private=True, url_per_host=number))
        assert reader.read(f"{server.url}/first", {}) == image  # imports what it needs
        original = reader._fetch

        def fetched(url: str) -> Fetched:
            work_begins.wait(SECONDS)
            answer = original(url)
            arrived.release()
            return answer

        reader._fetch = fetched
        work_begins = threading.Event()

        def work() -> None:
            work_begins.set()
            assert all(arrived.acquire(timeout=SECONDS) for _ in range(number))
            sizes.append(tracemalloc.get_traced_memory()[0])
            release.wait(SECONDS)

        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            waiting = [pool.submit(reader.read, f"{server.url}/{one}", {}) for one in range(number)]
            working = pool.submit(work)
            work_begins.wait(SECONDS)
            while not sizes and not working.done():
                time.sleep(0.01)
        finally:
            tracemalloc.stop()
        release.set()
        working.result(SECONDS)
        assert all(future.result(SECONDS) == image for future in waiting)
    assert sizes[0] - before < 2 * size  # of 8 images, with what the server and the test themselves have


class TemporaryFiles:
    """In place of SpooledTemporaryFile: the disk is full for the first `full` files, when `moment` comes.

    Attributes:
        files: all that were made.
    """

    def __init__(self, full: int = 0, moment: str = "rollover") -> None:
        self.files: list[SpooledTemporaryFile[bytes]] = []
        self.full, self.moment = full, moment

    def __call__(self, max_size: int) -> SpooledTemporaryFile[bytes]:
        file = SpooledTemporaryFile[bytes](max_size)
        if len(self.files) < self.full:

            def fail(*arguments: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            setattr(file, self.moment, fail)
        self.files.append(file)
        return file


@pytest.fixture
def temporary_files(monkeypatch: pytest.MonkeyPatch) -> TemporaryFiles:
    made = TemporaryFiles()
    monkeypatch.setattr(downloads, "IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(remote_files, "SpooledTemporaryFile", made)
    return made


def test_a_full_disk_of_temporary_files_is_told(temporary_files: TemporaryFiles) -> None:
    temporary_files.full = 2
    with site(lambda path, count: (200, {}, b"x" * 5000)) as server:
        reason, log = fetch(server.url + "/a", url_attempts=2)
    assert log["attempts"] == 2 and "after 2 attempts" in reason
    assert "temporary files (No space left on device)" in reason and "TMPDIR" in reason
    assert all(file.closed for file in temporary_files.files)


@pytest.mark.parametrize("moment", ["rollover", "flush"])  # flush: the end of a body may be in a buffer
def test_a_disk_that_was_full_for_a_moment_fails_no_image(temporary_files: TemporaryFiles, moment: str) -> None:
    """Other downloads free their space when their images are taken."""
    temporary_files.full, temporary_files.moment = 1, moment
    with site(lambda path, count: (200, {}, b"x" * 5000)) as server:
        assert fetch(server.url + "/a") == (b"x" * 5000, {"attempts": 2, "status": 200})
    assert all(file.closed for file in temporary_files.files)


@pytest.mark.parametrize("by_proxy", [False, True])
@pytest.mark.parametrize(
    ("why", "headers", "options"),
    [
        ("more than 4,999 bytes", {}, {"url_bytes": 4999}),
        ("ended before the body did|IncompleteRead", {"Content-Length": "9000"}, {"url_attempts": 1}),
        ("asks not to use it", {"X-Robots-Tag": "noai"}, {}),
    ],
)
def test_the_file_of_a_download_that_fails_is_closed(
    temporary_files: TemporaryFiles,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
    headers: dict[str, str],
    options: dict[str, Any],
    by_proxy: bool,
) -> None:
    with site(lambda path, count: (200, headers, b"x" * 5000)) as server:
        server.is_length_stated = "Content-Length" not in headers
        if by_proxy:
            monkeypatch.setenv("http_proxy", server.url)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
        reason, _ = fetch(server.url + "/a", **options)
    assert re.search(why, str(reason))
    assert len(temporary_files.files) == 1 and temporary_files.files[0].closed


def test_urls_as_people_write_them() -> None:
    with site(lambda path, count: OK) as server:
        base_url = server.url.replace("http://", "http://me:p%40ss@")
        assert fetch(f"{base_url}/my photo/caf\u00e9.png?a=b c")[0] == png(7)
        assert list(server.came) == ["/my%20photo/caf%C3%A9.png?a=b%20c"]
        assert server.headers[0]["Authorization"] == "Basic bWU6cEBzcw=="
        assert "Authorization" not in fetch(server.url)[1] and "Authorization" not in server.headers[1]
    for url in ("http://[bad/x.png", "http:///x.png", "http://no-such-host.invalid/x.png"):
        reason, _ = fetch(url)
        assert str(reason).startswith("the download failed")


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(path: str, count: int) -> Answer:
        return (429, {"Retry-After": "0"}, b"") if count == 0 else (200, {"X-Robots-Tag": "nofollow"}, png(7))

    with site(script) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert fetch("http://pictures.example/a.png") == (png(7), {"attempts": 2, "status": 200})
        assert list(proxy.came) == ["http://pictures.example/a.png"]


@pytest.mark.parametrize(
    "options",
    [
        {"url_attempts": 0},
        {"url_attempts": 21},
        {"url_seconds": 0},
        {"url_bytes": -1},
        {"url_per_host": 0},
        {"user_agent_token": "two words"},
        {"user_agent_token": ""},
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DownloadOptions(**options)


def test_a_job_records_attempts_and_the_last_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(path: str, count: int) -> Answer:
        if path == "/gone.png":
            return 404, {}, b""
        return (503, {}, b"") if (path, count) == ("/busy.png", 0) else (200, {}, png(3))

    with site(script) as server:
        table = tmp_path / "table.csv"
        table.write_text("url,title\n" + "".join(f"{server.url}/{name}.png,x\n" for name in ("good", "busy", "gone")))
        out = tmp_path / "out.jsonl"
        options: dict[str, Any] = {"out": out, "max_new_tokens": 3, "url_private": True}
        summary = caption_dataset(table, **options)
    assert (summary.captioned, summary.failed) == (2, 1)
    state = tmp_path / "out.jsonl.share4v"
    records = [record_from_line(line) for line in (state / "journal.jsonl").read_text().splitlines()]
    assert [record.download for record in records] == [
        {"attempts": 1, "status": 200},
        {"attempts": 2, "status": 200},
        {"attempts": 1, "status": 404},
    ]
    failure = json.loads((state / "failed.jsonl").read_text())
    assert failure["download"] == {"attempts": 1, "status": 404} and "answered 404 Not Found" in failure["error"]


def test_the_last_of_several_headers_counts_only_where_there_can_be_one() -> None:
    tags = (("x-robots-tag", "nofollow"), ("x-robots-tag", "noai"), ("x-robots-tag", "all"))
    reader = ImageDownloads(DownloadOptions(), fetch=lambda url: Fetched(200, tags, Body(None, 10_000).write([png(1)])))
    with pytest.raises(ItemError, match="noai"):
        reader.read("http://pictures.example/a", {})
