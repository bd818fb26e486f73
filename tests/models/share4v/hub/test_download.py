"""Downloads from a real server on this machine that cuts connections, lies and sends the wrong bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mindone.models.share4v.hub.download import ATTEMPTS, DownloadError, RemoteFile, download
from mindone.models.share4v.hub.errors import NoSpaceError

BODY = bytes(range(256)) * 5000  # 1.28 MB: more than one chunk
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    body: bytes = BODY
    cuts: list[int] = field(default_factory=list)  # of each answer in turn, only so many bytes are sent
    statuses: list[int] = field(default_factory=list)  # answered before anything else
    retry_after: str | None = None
    ranges: bool = True
    validators: bool = True
    stated_length: int | None = None
    shift_range: int = 0
    asked: list[str | None] = field(default_factory=list)  # the Range header of every request


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        behaviour: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        behaviour.asked.append(self.headers.get("Range"))
        etag = f'"{hashlib.md5(behaviour.body).hexdigest()}"'
        if behaviour.statuses:
            self.send_response(behaviour.statuses.pop(0))
            if behaviour.retry_after:
                self.send_header("Retry-After", behaviour.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and behaviour.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(match[1])
        if start > 0 and start >= len(behaviour.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(behaviour.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = behaviour.body[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start + behaviour.shift_range
            self.send_header("Content-Range", f"bytes {first}-{len(behaviour.body) - 1}/{len(behaviour.body)}")
        if behaviour.validators:
            self.send_header("ETag", etag)
        length = len(rest) if behaviour.stated_length is None else behaviour.stated_length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client may have had enough
            self.wfile.write(rest[: behaviour.cuts.pop(0)] if behaviour.cuts else rest)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[Behaviour, str]]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.behaviour = Behaviour()  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield httpd.behaviour, f"http://127.0.0.1:{httpd.server_port}/weights.bin"  # type: ignore[attr-defined]
    httpd.shutdown()
    httpd.server_close()
    thread.join()


class Waits(list):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def assert_whole(target: Path) -> None:
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_whole_file(server, tmp_path: Path) -> None:
    behaviour, url = server
    download(RemoteFile(url, len(BODY), SHA256), tmp_path / "w")
    assert_whole(tmp_path / "w")
    assert behaviour.asked == [None]


@pytest.mark.parametrize("stated", [True, False])
def test_cut_connections_are_taken_up_where_they_broke(server, tmp_path: Path, stated: bool) -> None:
    behaviour, url = server
    behaviour.cuts = [700_000, 300_000, 0, 100_000]
    waits = Waits()
    download(RemoteFile(url, len(BODY) if stated else None, SHA256 if stated else None), tmp_path / "w", sleep=waits)
    assert_whole(tmp_path / "w")
    starts = [int(asked[6:-1]) if asked else 0 for asked in behaviour.asked]
    # Never from the start again, and never a byte twice. (An HTTP client may hold back the tail of a cut answer.)
    assert starts[0] == 0 and starts == sorted(starts) and starts[1] > 0 and len(waits) == len(starts) - 1


def test_a_later_call_goes_on_from_what_is_there(server, tmp_path: Path) -> None:
    behaviour, url = server
    behaviour.cuts = [1_100_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError, match=f"failed {ATTEMPTS} times in a row"):
        download(RemoteFile(url, len(BODY), SHA256), tmp_path / "w", sleep=Waits())
    assert not (tmp_path / "w").exists()
    have = (tmp_path / "w.part").stat().st_size
    assert have > 0
    behaviour.asked.clear()
    behaviour.cuts.clear()
    download(RemoteFile(url, len(BODY), SHA256), tmp_path / "w")
    assert behaviour.asked == [f"bytes={have}-"]
    assert_whole(tmp_path / "w")


def test_a_server_without_ranges_is_asked_for_all_of_it(server, tmp_path: Path) -> None:
    behaviour, url = server
    behaviour.ranges, behaviour.cuts = False, [1_100_000]
    download(RemoteFile(url, len(BODY), SHA256), tmp_path / "w", sleep=Waits())
    assert_whole(tmp_path / "w")


def test_without_a_mark_of_the_version_it_starts_again(server, tmp_path: Path) -> None:
    behaviour, url = server
    behaviour.validators, behaviour.cuts = False, [1_100_000]
    download(RemoteFile(url), tmp_path / "w", sleep=Waits())
    assert_whole(tmp_path / "w")
    assert behaviour.asked == [None, None]


def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old(server, tmp_path: Path) -> None:
    behaviour, url = server
    behaviour.body, behaviour.cuts = bytes(len(BODY)), [1_100_000]

    def change(seconds: float) -> None:
        behaviour.body = BODY

    download(RemoteFile(url), tmp_path / "w", sleep=change)
    assert_whole(tmp_path / "w")


def test_a_part_that_is_already_whole_needs_no_more(server, tmp_path: Path) -> None:
    behaviour, url = server
    etag = f'"{hashlib.md5(BODY).hexdigest()}"'
    for size in (None, len(BODY)):
        (tmp_path / "w.part").write_bytes(BODY)
        (tmp_path / "w.part.json").write_text(json.dumps({"url": url, "validator": etag}))
        download(RemoteFile(url, size, SHA256), tmp_path / "w")
        assert_whole(tmp_path / "w")
    assert behaviour.asked == [f"bytes={len(BODY)}-"]  # 416 says that nothing is left; a stated size saves asking


def test_a_part_longer_than_the_file_starts_again(server, tmp_path: Path) -> None:
    _, url = server
    etag = f'"{hashlib.md5(BODY).hexdigest()}"'
    (tmp_path / "w.part").write_bytes(BODY + b"too much")
    (tmp_path / "w.part.json").write_text(json.dumps({"url": url, "validator": etag}))
    download(RemoteFile(url), tmp_path / "w", sleep=Waits())
    assert_whole(tmp_path / "w")


def test_a_damaged_part_is_found_by_the_hash_and_fetched_anew(server, tmp_path: Path) -> None:
    behaviour, url = server
    etag = f'"{hashlib.md5(BODY).hexdigest()}"'
    (tmp_path / "w.part").write_bytes(b"x" * 1000)
    (tmp_path / "w.part.json").write_text(json.dumps({"url": url, "validator": etag}))
    download(RemoteFile(url, len(BODY), SHA256), tmp_path / "w")
    assert_whole(tmp_path / "w")
    assert behaviour.asked == ["bytes=1000-", None]


def test_another_range_than_asked_for_is_not_taken(server, tmp_path: Path) -> None:
    behaviour, url = server
    behaviour.cuts, behaviour.shift_range = [1_100_000], 7
    download(RemoteFile(url, len(BODY), SHA256), tmp_path / "w", sleep=Waits())
    assert_whole(tmp_path / "w")


def test_a_wrong_hash_is_an_error_with_both(server, tmp_path: Path) -> None:
    _, url = server
    with pytest.raises(DownloadError, match=f"sha256 {SHA256}, expected {'0' * 64}"):
        download(RemoteFile(url, len(BODY), "0" * 64), tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_another_size_than_stated_is_an_error_with_both(server, tmp_path: Path) -> None:
    _, url = server
    with pytest.raises(DownloadError, match=f"has {len(BODY)} bytes, expected 5"):
        download(RemoteFile(url, 5), tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stated", [len(BODY) + 1000, len(BODY) - 1000])
def test_a_server_that_lies_about_the_length(server, tmp_path: Path, stated: int) -> None:
    behaviour, url = server
    behaviour.stated_length = stated
    with pytest.raises(DownloadError):
        download(RemoteFile(url, len(BODY), SHA256), tmp_path / "w", sleep=Waits())
    if stated > len(BODY):  # nothing else to compare with: the missing bytes never come
        behaviour.validators = False
        with pytest.raises(DownloadError, match=f"failed {ATTEMPTS} times"):
            download(RemoteFile(url), tmp_path / "w", sleep=Waits())
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(server, tmp_path: Path, status: int) -> None:
    behaviour, url = server
    behaviour.statuses = [status]
    with pytest.raises(DownloadError, match=f"HTTP status {status}"):
        download(RemoteFile(url), tmp_path / "w", sleep=Waits())
    assert len(behaviour.asked) == 1


def test_passing_errors_are_waited_out_longer_and_longer(server, tmp_path: Path) -> None:
    behaviour, url = server
    behaviour.statuses = [500, 503, 429]
    waits = Waits()
    download(RemoteFile(url, len(BODY), SHA256), tmp_path / "w", sleep=waits)
    assert_whole(tmp_path / "w")
    assert waits == [0.5, 1.0, 2.0]
    behaviour.statuses, behaviour.retry_after = [503], "7"
    download(RemoteFile(url, len(BODY), SHA256), tmp_path / "w", sleep=waits)
    assert waits[-1] == 7.0


def test_lasting_errors_end(server, tmp_path: Path) -> None:
    behaviour, url = server
    behaviour.statuses = [500] * 100
    with pytest.raises(DownloadError, match=rf"failed {ATTEMPTS} times in a row; last error: HTTP status 500"):
        download(RemoteFile(url), tmp_path / "w", sleep=Waits())
    assert len(behaviour.asked) == ATTEMPTS


def test_nobody_listening_ends(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="ConnectionError"):
        download(RemoteFile("http://127.0.0.1:9/x"), tmp_path / "w", sleep=Waits())


def test_too_little_room_is_seen_before_the_first_byte(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, url = server
    usage = shutil.disk_usage(tmp_path)._replace(free=65 * 1024**2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NoSpaceError, match=r"needs 0\.00 GB and .* has 0\.07 GB free"):
        download(RemoteFile(url, len(BODY)), tmp_path / "w")
    assert not (tmp_path / "w").exists() and (tmp_path / "w.part").stat().st_size == 0


@pytest.mark.parametrize("progress", [None, True, False])
def test_a_bar_is_shown_where_asked_for(server, tmp_path: Path, capsys, progress: bool | None) -> None:
    _, url = server
    download(RemoteFile(url, len(BODY)), tmp_path / "w", progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("w: 100%" in captured.err) == (progress is True)  # pytest's standard error is no terminal


def test_the_module_needs_neither_mindspore_nor_torch_of_its_own() -> None:
    code = (
        "import sys, mindone; before = set(sys.modules); import mindone.models.share4v.hub;"
        "new = set(sys.modules) - before;"
        "print(sorted(new & {'mindspore', 'torch', 'transformers', 'huggingface_hub'}))"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == "[]"
