"""Hostile servers and poisoned caches: every download ends, within bounds of time, memory and disk, and is checked."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindone.models.share4v.hub import PRESETS, HubError, NoSpaceError, Preset, contents, download, resolve, transfer
from mindone.models.share4v.hub import cache as hub_cache
from mindone.models.share4v.hub.download import DownloadError, RemoteFile
from mindone.models.share4v.hub.huggingface import cached_repo
from mindone.models.share4v.processing import image_loading
from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

REPO = "someone/small"
COMMIT = "c" * 40
PAGE = b"<!DOCTYPE html><html>Please sign in to this network</html>"
PIECES = b"\x0a\x05\x0a\x03abc"
TENSORS = (2).to_bytes(8, "little") + b"{}" + bytes(100)
GOOD = {"config.json": b'{"model_type": "share4v"}', "tokenizer.model": PIECES, "model.safetensors": TENSORS}
Sender = Callable[[BaseHTTPRequestHandler], None]


def endless(piece: bytes, seconds: float = 0.0, head: bytes = b"HTTP/1.0 200 OK\r\n\r\n") -> Sender:
    """Send `piece` again and again, with a pause after each."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        while not handler.server.ended.wait(seconds):  # type: ignore[attr-defined]
            handler.wfile.write(piece)

    return send


class Handler(BaseHTTPRequestHandler):
    """Serves `server.answers`: path -> bytes or a Sender; anything else is not found."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        answer = self.server.answers.get(self.path.partition("?")[0])  # type: ignore[attr-defined]
        with suppress(ConnectionError):
            if callable(answer):
                answer(self)
                return
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(answer or b"")))
            self.end_headers()
            self.wfile.write(answer or b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.answers, httpd.asked, httpd.ended = {}, [], threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{httpd.server_port}"
    httpd.address = address  # type: ignore[attr-defined]
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHARE4V_MIRROR", f"{address}/mirror")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(PRESETS, "small", Preset(REPO, tuple(GOOD)))
    monkeypatch.chdir(tmp_path)
    yield httpd
    httpd.ended.set()  # type: ignore[attr-defined]
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Shortens all deadlines, for downloads that never end: they would also end those that a busy machine delays."""

    def shorten() -> None:
        monkeypatch.setattr(transfer, "JSON_SECONDS", 0.5)
        monkeypatch.setattr(download, "START_SECONDS", 0.5)
        monkeypatch.setattr(download, "SECONDS_AHEAD", 0.5)
        monkeypatch.setattr(image_loading, "DOWNLOAD_SECONDS", 0.5)

    return shorten


def fill_mirror(server, files: dict[str, bytes | Sender], **stated: object) -> None:
    entries = [{"name": name, **stated} for name in files]
    server.answers["/mirror/small/manifest.json"] = json.dumps({"files": entries}).encode()
    server.answers |= {f"/mirror/small/{name}": body for name, body in files.items()}


def fill_hub(server, files: dict[str, bytes | Sender], **more: object) -> None:
    siblings = [{"rfilename": name} for name in files]
    server.answers[f"/api/models/{REPO}"] = json.dumps({"sha": COMMIT, "siblings": siblings, **more}).encode()
    server.answers |= {f"/{REPO}/resolve/{COMMIT}/{name}": body for name, body in files.items()}


def failure(name: str = "small") -> str:
    """Resolve a name, which must fail without leaving anything that counts as complete."""
    with pytest.raises(HubError) as caught:
        resolve(name)
    with pytest.raises(HubError):
        resolve(name, local_files_only=True, weights=False)
    return str(caught.value)


MANIFESTS: dict[str, tuple[bytes | Sender, str]] = {
    "endless": (endless(b'{"files": [' + b" " * 65536), "sends more than 4,194,304 bytes"),
    "trickling": (endless(b" ", 0.05), "too slow"),
    "trickling in its head": (endless(b"x", 0.05, head=b"HTTP/1.0 200 OK\r\nX: "), "too slow"),
    "silent": (endless(b"", 0.05, head=b""), "too slow"),
    "nested": (b"[" * 1_000_000, "is not JSON: RecursionError"),
    "repeating": (json.dumps({"files": [{"name": "config.json"}] * 2}).encode(), "a name is listed twice"),
    "of too many files": (json.dumps({"files": [{"name": f"{n}.json"} for n in range(1001)]}).encode(), "at most 1000"),
    "no list": (b'{"files": {"name": 1}}', "expected a list"),
    "a page": (PAGE, "is not JSON"),
    "a huge number": (b'{"files": ' + b"9" * 100_000 + b"}", "is not JSON|is no manifest"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_hostile_manifest(server, hurry: Callable[[], None], kind: str) -> None:
    server.answers["/mirror/small/manifest.json"], message = MANIFESTS[kind]
    if message == "too slow":
        hurry()
    assert re.search(message, failure())


@pytest.mark.parametrize("kind", ["endless", "trickling", "trickling in its head", "silent", "nested", "a page"])
def test_a_hostile_hugging_face_endpoint(server, hurry: Callable[[], None], kind: str) -> None:
    server.answers[f"/api/models/{REPO}"], expected = MANIFESTS[kind]
    if expected == "too slow":
        hurry()
    assert re.search(expected.replace("4,194,304", "33,554,432"), failure(REPO))


@pytest.mark.parametrize("more", [{"sha": "../../.."}, {"sha": 3}, {"sha": None}, {"siblings": 5}, {"siblings": [{}]}])
def test_a_hugging_face_endpoint_that_states_nonsense(server, tmp_path: Path, more: dict) -> None:
    fill_hub(server, GOOD, **more)
    assert "the hub's answer" in failure(REPO)
    assert not [path for path in tmp_path.rglob("*") if path.name in GOOD]


@pytest.mark.parametrize("name", ["../x.json", "/tmp/x.json", "a/b.json", ".hidden.json"])
def test_the_names_that_an_endpoint_states_cannot_lead_out(server, tmp_path: Path, name: str) -> None:
    fill_hub(server, {**GOOD, name: b"{}"})
    directory = resolve(REPO)
    assert sorted(path.name for path in directory.iterdir() if path.name != ".share4v.json") == sorted(GOOD)


WRONG = {
    "config.json": [PAGE, b"[1]", b"", b'"text"', b"[" * 100_000],
    "tokenizer.model": [PAGE, b"", PIECES[:-1], b"\x0a\xff\xff\xff\xff\xff\xff\x7f"],
    "model.safetensors": [PAGE, b"", b"\xff" * 8 + b"{}", TENSORS[:8]],
    "pytorch_model.bin": [PAGE, b""],
    "a.ckpt": [PAGE, b""],
    "model.safetensors.index.json": [PAGE, b"[]"],
    "chat_template.jinja": [PAGE],
}


@pytest.mark.parametrize("source", ["mirror", "hub"])
@pytest.mark.parametrize(("name", "number"), [(name, number) for name in WRONG for number in range(len(WRONG[name]))])
def test_wrong_contents_with_status_200_are_not_recorded(
    server, tmp_path: Path, source: str, name: str, number: int
) -> None:
    """A captive portal answers everything with a page; it was cached as config.json and recorded as complete."""
    files = {**GOOD, name: WRONG[name][number]}
    if name in ("pytorch_model.bin", "a.ckpt"):
        del files["model.safetensors"]
    (fill_mirror if source == "mirror" else fill_hub)(server, files)
    assert f"{name} gave a file that is" in failure("small" if source == "mirror" else REPO)
    assert not list(tmp_path.rglob(".share4v.json"))


@pytest.mark.parametrize("source", ["mirror", "hub"])
def test_weights_that_trickle(server, hurry: Callable[[], None], monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    get = download.download

    def get_in_a_hurry(file: RemoteFile, target: Path, *arguments: object, **keywords: object) -> None:
        if target.name == "model.safetensors":
            hurry()
        get(file, target, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(download, "download", get_in_a_hurry)
    fill = fill_mirror if source == "mirror" else fill_hub
    fill(server, {**GOOD, "model.safetensors": endless(b"\0" * 10, 0.02)})
    start = time.monotonic()
    message = failure("small" if source == "mirror" else REPO)
    assert "model.safetensors: the download is too slow" in message
    assert time.monotonic() - start < 60


def test_a_server_that_gives_a_byte_for_each_attempt(server, hurry: Callable[[], None], tmp_path: Path) -> None:
    """An attempt with progress resets the count of failures, but not the deadline."""
    hurry()

    def one_byte(handler: BaseHTTPRequestHandler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        head = f"HTTP/1.1 206 OK\r\nContent-Range: bytes {start}-9999/10000\r\n" if start else "HTTP/1.1 200 OK\r\n"
        handler.wfile.write(f'{head}ETag: "1"\r\nContent-Length: {10000 - start}\r\n\r\n'.encode() + b"x")

    server.answers["/w.bin"] = one_byte
    with pytest.raises(HubError, match=r"too slow|times in a row"):
        download.download(RemoteFile(f"{server.address}/w.bin"), tmp_path / "w.bin", sleep=lambda _: time.sleep(0.01))


def test_a_slow_but_steady_line_moves_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pace = transfer.Pace(1.0, rate=1000.0, seconds_ahead=5.0)
    assert pace.remaining == 1.0
    pace.add(2000)
    assert pace.remaining == 3.0
    now[0] += 2.5
    assert pace.remaining == 0.5
    pace.add(10**9)
    assert pace.remaining == 5.0  # a fast start does not allow an hour of silence later
    fixed = transfer.Pace(1.0)
    fixed.add(10**9)
    assert fixed.remaining == 1.0


def test_a_companion_without_a_stated_length_is_bounded(server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_COMPANION_BYTES", 2**20)
    fill_mirror(server, {**GOOD, "config.json": endless(b" " * 65536)})
    assert "config.json has more than 1,048,576 bytes, the limit for config.json" in failure()


def test_weights_without_a_stated_length_are_bounded(server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_UNSTATED_BYTES", 2**20)
    fill_mirror(server, {**GOOD, "model.safetensors": endless(bytes(65536))})
    assert "model.safetensors has more than 1,048,576 bytes" in failure()


def test_the_disk_reserve_is_kept_while_pieces_arrive(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is not stated, so that nothing can be checked before the first byte."""
    usage = namedtuple("usage", "total used free")

    def disk_usage(path: object) -> object:
        written = sum(one.stat().st_size for one in tmp_path.rglob("*") if one.is_file())
        return usage(0, 0, hub_cache.RESERVE + 10**6 - written)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    fill_mirror(server, {**GOOD, "model.safetensors": endless(bytes(65536))})
    with pytest.raises(NoSpaceError):
        resolve("small")
    assert sum(one.stat().st_size for one in tmp_path.rglob("*") if one.is_file()) < 10_000  # nothing is left behind


def snapshot_of(folder: Path) -> Path:
    """Write a complete snapshot in the layout of huggingface_hub's cache."""
    repository = folder / "models--someone--small"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot.mkdir(parents=True)
    for number, (name, body) in enumerate(GOOD.items()):
        (repository / "blobs" / str(number)).write_bytes(body)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    return snapshot


@pytest.mark.parametrize("kind", ["none", "link", "directory link", "FIFO", "circle"])
def test_a_poisoned_snapshot_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    snapshot = snapshot_of(tmp_path / "hf")
    victim = snapshot / "config.json"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_bytes(GOOD["config.json"])
    if kind != "none":
        victim.unlink()
    if kind == "link":
        victim.symlink_to(outside / "config.json")
    elif kind == "FIFO":
        os.mkfifo(victim)
    elif kind == "circle":
        victim.symlink_to(victim)
    elif kind == "directory link":
        shutil.move(str(snapshot), str(outside / "moved"))
        snapshot.symlink_to(outside / "moved")
    assert cached_repo(REPO, tmp_path / "home", weights=True) == (snapshot if kind == "none" else None)


@pytest.mark.parametrize("name", ["../../../outside", "/etc/hostname", 5, None])
def test_a_record_cannot_name_files_elsewhere(tmp_path: Path, name: object) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    record = {"source": "", "weights": True, "files": [{"name": name, "size": None}]}
    (tmp_path / ".share4v.json").write_text(json.dumps(record))
    assert not hub_cache.is_recorded(tmp_path, weights=True)


def test_a_token_is_sent_to_the_endpoint_only(server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = f"http://localhost:{server.server_port}/storage"

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(f"HTTP/1.0 302 Found\r\nLocation: {elsewhere}\r\n\r\n".encode())

    fill_hub(server, {**GOOD, "model.safetensors": redirect})
    server.answers["/storage"] = TENSORS
    resolve(REPO)
    sent = dict(server.asked)
    assert sent["/storage"] is None and sent[f"/{REPO}/resolve/{COMMIT}/config.json"] == "Bearer hf_secret"


@pytest.mark.parametrize("kind", ["trickling", "trickling in its head", "silent"])
def test_an_image_that_trickles(server, hurry: Callable[[], None], kind: str) -> None:
    hurry()
    server.answers["/a.jpg"] = MANIFESTS[kind][0]
    with pytest.raises(ImageLoadError, match="was not complete after"):
        load_image(f"{server.address}/a.jpg")


def test_passwords_of_addresses_are_used_but_not_told(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = server.address.replace("http://", "http://me:pass@")
    monkeypatch.setenv("SHARE4V_MIRROR", f"{secret}/mirror")
    monkeypatch.setenv("HF_ENDPOINT", secret)
    message = failure()
    assert ":pass" not in message and "me:" not in message and f"{server.address}/mirror" in message
    fill_mirror(server, GOOD)
    directory = resolve("small")
    assert server.asked[-1][1].startswith("Basic ")
    assert b":pass" not in (directory / ".share4v.json").read_bytes()


def test_the_error_of_a_download_does_not_tell_the_password(server, tmp_path: Path) -> None:
    url = server.address.replace("http://", "http://me:pass@") + "/w.bin?token=1234"
    with pytest.raises(DownloadError) as caught:
        download.download(RemoteFile(url), tmp_path / "w.bin")
    with pytest.raises(ImageLoadError) as image_error:
        load_image(url)
    for error in (caught, image_error):
        assert "pass@" not in str(error.value) and "1234" not in str(error.value)
