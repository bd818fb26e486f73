"""resolve: presets, mirrors, the cache, offline work and racing processes, against servers on this machine."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers import hub_server
from helpers.hub_server import Handler, HubServer, serving

from mindone.models.share4v import hub
from mindone.models.share4v.hub import (
    PRESETS,
    HubError,
    NoSpaceError,
    Preset,
    RepoOptions,
    cache,
    inventory,
    mirror,
    resolve,
)
from mindone.models.share4v.hub.cache import cache_root, choose_files

REPO = "someone/small"
PIECES = b"\x0a\x05\x0a\x03abc"  # a sentencepiece model of one piece
WEIGHTS = (2).to_bytes(8, "little") + b"{}" + bytes(range(256)) * 400  # begins like safetensors
FILES = {"config.json": b'{"a": 1}', "tokenizer.model": PIECES, "model.safetensors": WEIGHTS}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving() as httpd:
        yield httpd


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: HubServer) -> None:
    """Everything goes to the server of the test, and the cache to its folder."""
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHARE4V_MIRROR", f"{address}/mirror/")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(PRESETS, "small", Preset(REPO, tuple(FILES)))
    monkeypatch.chdir(tmp_path)


def manifest(files: dict[str, bytes], **wrong: object) -> bytes:
    entries = [
        {"name": name, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()} for name, body in files.items()
    ]
    return json.dumps({"files": [{**entry, **wrong} for entry in entries]}).encode()


def fill_mirror(server, files: dict[str, bytes] = FILES, with_manifest: bool = True) -> None:
    server.files |= {f"/mirror/small/{name}": body for name, body in files.items()}
    if with_manifest:
        server.files["/mirror/small/manifest.json"] = manifest(files)


def fill_hub(server, files: dict[str, bytes] = FILES, **wrong: object) -> None:
    server.add_repository(REPO, files, **wrong)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_preset_comes_from_the_mirror_and_then_from_the_cache(
    server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, with_manifest: bool
) -> None:
    fill_mirror(server, with_manifest=with_manifest)
    directory = resolve("small")
    assert directory == tmp_path / "home" / "models" / "small"
    assert contents(directory) == FILES
    assert resolve(REPO) == directory  # the same row by its repository's name
    no_sockets(monkeypatch)
    assert resolve("small") == resolve("small", local_files_only=True) == directory
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve(REPO) == directory


def test_configs_alone_and_then_the_weights(server) -> None:
    fill_mirror(server)
    directory = resolve("small", weights=False)
    assert set(contents(directory)) == {"config.json", "tokenizer.model"}
    with pytest.raises(HubError, match="missing or incomplete"):
        resolve("small", local_files_only=True)
    server.asked.clear()
    assert resolve("small") == directory
    assert contents(directory) == FILES
    assert server.asked == ["/mirror/small/manifest.json", "/mirror/small/model.safetensors"]


def test_a_check_of_the_small_files_can_stop_the_download_of_weights(server) -> None:
    fill_mirror(server)
    checked: list[Path] = []

    def refuse(directory: Path) -> None:
        checked.append(directory)
        assert contents(directory)["config.json"] == FILES["config.json"]
        raise ValueError("the config is wrong")

    with pytest.raises(ValueError, match="the config is wrong"):
        resolve("small", before_weights=refuse)
    assert len(checked) == 1 and not any("safetensors" in path for path in server.asked)
    directory = resolve("small", before_weights=checked.append)
    assert len(checked) == 2 and contents(directory)["model.safetensors"] == WEIGHTS
    assert resolve("small", before_weights=refuse) == directory  # it is in the cache: nothing is downloaded


def test_a_cache_that_lost_a_file_is_mended(server) -> None:
    fill_mirror(server)
    directory = resolve("small")
    (directory / "model.safetensors").unlink()
    assert contents(resolve("small")) == FILES
    (directory / "model.safetensors").write_bytes(b"cut")
    assert contents(resolve("small")) == FILES


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_lost_companion_is_downloaded_without_the_weights(server, with_manifest: bool) -> None:
    fill_mirror(server, with_manifest=with_manifest)
    directory = resolve("small")
    (directory / "tokenizer.model").unlink()
    resolve("small", weights=False)
    server.asked.clear()
    assert resolve("small") == directory and contents(directory) == FILES
    assert server.asked == []


@pytest.mark.parametrize("module, step", [(mirror, "write_record"), (Path, "replace")])
def test_an_interrupted_download_of_companions_does_not_lose_the_weights(
    server, monkeypatch: pytest.MonkeyPatch, module: object, step: str
) -> None:
    fill_mirror(server)
    directory = resolve("small")
    (directory / "tokenizer.model").unlink()
    original = getattr(module, step)

    def killed(path: Path, *arguments: object, **_: object) -> object:
        if step == "replace" and arguments != (directory / "tokenizer.model",):
            return original(path, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, step, killed)
        resolve("small", weights=False)
    server.asked.clear()
    assert resolve("small") == directory and contents(directory) == FILES
    assert not any(path.endswith("safetensors") for path in server.asked)


@pytest.mark.parametrize("left", ["model.safetensors", "model.safetensors.part"])
def test_weights_of_an_interrupted_download_survive_one_of_companions(server, left: str) -> None:
    fill_mirror(server)
    directory = mirror.preset_directory("small", cache_root())
    partial = mirror.partial_directory(directory)
    partial.mkdir(parents=True)
    for name, body in {**FILES, "of_an_earlier_version.json": b"{}"}.items():
        (partial / (left if name == "model.safetensors" else name)).write_bytes(body)
    assert resolve("small", weights=False) == directory
    assert {path.name for path in partial.iterdir()} == {left}
    assert contents(directory) == {name: body for name, body in FILES.items() if name != "model.safetensors"}
    server.asked.clear()
    assert contents(resolve("small")) == FILES and not partial.exists()
    assert ("/mirror/small/model.safetensors" in server.asked) == (left != "model.safetensors")


def test_shards_that_were_not_moved_yet_survive_a_download_of_companions(
    server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": WEIGHTS[:10] + bytes([n]) * 1000 for n in (1, 2)}
    index = json.dumps({"weight_map": {str(n): name for n, name in enumerate(shards)}}).encode()
    files = {"config.json": b"{}", "tokenizer.model": PIECES, "model.safetensors.index.json": index, **shards}
    fill_mirror(server, files)
    directory = mirror.preset_directory("small", cache_root())
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target == directory / [*shards][1]:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        resolve("small")
    resolve("small", weights=False)
    server.asked.clear()
    assert contents(resolve("small")) == files
    assert not any(path.endswith(".safetensors") for path in server.asked)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    "record",
    [
        {"weights": True, "files": None},
        {"weights": True, "files": [1]},
        {"weights": True, "files": [{"name": ["config.json"], "size": 1}]},
        {"weights": True, "files": [{"name": "model.safetensors"}]},
        {"weights": True, "files": [{"name": "config.json", "size": 1}]},  # another size, and no hash
        {"weights": True, "files": [{"name": "../config.json", "size": None}]},
        {"weights": "yes", "files": []},
        [],
    ],
)
def test_with_a_record_that_was_edited_the_model_is_downloaded_again(server, record: object, weights: bool) -> None:
    fill_mirror(server)
    directory = resolve("small")
    (directory / cache.RECORD).write_text(json.dumps(record))
    server.asked.clear()
    resolve("small", weights=weights)
    assert contents(resolve("small")) == FILES
    assert server.asked.count("/mirror/small/model.safetensors") == 1
    server.asked.clear()
    assert contents(resolve("small", local_files_only=True)) == FILES and server.asked == []


def test_weights_of_an_earlier_version_are_not_mixed_with_new_companions(server) -> None:
    fill_mirror(server)
    directory = resolve("small")
    newer = {**FILES, "config.json": b'{"a": 2}', "model.safetensors": WEIGHTS[:10] + WEIGHTS[10:][::-1]}
    fill_mirror(server, newer)
    (directory / "tokenizer.model").unlink()
    assert contents(resolve("small", weights=False))["config.json"] == b'{"a": 2}'
    assert contents(resolve("small")) == newer


def test_when_the_mirror_lacks_it_the_hub_is_asked(server, tmp_path: Path) -> None:
    fill_hub(server)
    directory = resolve("small")
    assert contents(directory) == FILES
    assert directory.is_relative_to(tmp_path / "home" / "huggingface")
    server.files.clear()
    assert resolve(REPO, local_files_only=True) == directory


def test_a_wrong_hash_on_the_mirror_leads_to_the_hub(server) -> None:
    fill_mirror(server)
    fill_hub(server)
    server.files["/mirror/small/manifest.json"] = manifest(FILES, sha256="0" * 64)
    assert "huggingface" in str(resolve("small"))


def test_a_wrong_hash_on_the_hub_is_an_error_and_not_kept(server) -> None:
    fill_hub(server, sha256="0" * 64)
    with pytest.raises(HubError, match=f"model.safetensors gave a file with sha256 .* expected {'0' * 64}"):
        resolve("small")
    with pytest.raises(HubError):
        resolve("small", local_files_only=True)


def test_what_hugging_faces_own_cache_holds_whole_is_used(
    server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    repository = tmp_path / "hf" / "models--someone--small"
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    for name in ("config.json", "tokenizer.model"):
        (snapshot / name).write_bytes(FILES[name])
    no_sockets(monkeypatch)
    assert resolve(REPO, local_files_only=True, weights=False) == snapshot
    with pytest.raises(HubError):
        resolve(REPO, local_files_only=True)
    (snapshot / "model.safetensors").write_bytes(b"1")
    assert resolve("small", local_files_only=True) == snapshot


TOKENIZER, PREPROCESSOR = "tokenizer.model", "preprocessor_config.json"
NEEDED = [("share4v", [TOKENIZER]), ("clip_vision_model", [PREPROCESSOR]), ("llava", [TOKENIZER, PREPROCESSOR])]


@pytest.mark.parametrize("kind, needed", NEEDED)
def test_what_was_fetched_in_part_is_not_whole(
    server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, needed: list[str]
) -> None:
    from huggingface_hub import constants, snapshot_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    config = {"model_type": kind, **({"text_config": {}} if kind == "llava" else {})}
    files = {
        "config.json": json.dumps(config).encode(),
        **{name: PIECES if name == TOKENIZER else b"{}" for name in needed},
    }
    fill_hub(server, files)
    address = f"http://127.0.0.1:{server.server_port}"
    for place in (tmp_path / "hf", tmp_path / "home" / "huggingface"):  # the latter: an interrupted run of ours
        snapshot_download(REPO, allow_patterns=["config.json"], cache_dir=place, endpoint=address)
    for name in needed:
        with pytest.raises(HubError, match="missing or incomplete"):
            resolve(REPO, local_files_only=True, weights=False)
        snapshot_download(REPO, allow_patterns=[name], cache_dir=tmp_path / "hf", endpoint=address)
    assert resolve(REPO, local_files_only=True, weights=False).is_relative_to(tmp_path / "hf")
    shutil.rmtree(tmp_path / "hf")
    assert contents(resolve(REPO, weights=False)) == files
    assert contents(resolve(REPO, local_files_only=True, weights=False)) == files


def test_a_mirror_without_a_manifest_may_lack_what_is_not_required(server) -> None:
    PRESETS["small"] = Preset(REPO, ("generation_config.json", "special_tokens_map.json", *FILES))
    fill_mirror(server, with_manifest=False)
    assert contents(resolve("small")) == contents(resolve("small", local_files_only=True)) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_mirror_without_a_manifest_must_have_what_is_required(server, name: str) -> None:
    fill_mirror(server, {key: body for key, body in FILES.items() if key != name}, with_manifest=False)
    with pytest.raises(HubError, match=f"{name} answered with HTTP status 404"):
        resolve("small")


def test_an_interrupted_download_of_many_files_goes_on(server, tmp_path: Path) -> None:
    fill_mirror(server)
    server.files["/mirror/small/tokenizer.model"] = 404
    with pytest.raises(HubError):
        resolve("small")
    server.files["/mirror/small/tokenizer.model"] = FILES["tokenizer.model"]
    server.asked.clear()
    assert contents(resolve("small")) == FILES
    assert "/mirror/small/config.json" not in server.asked  # it was whole, as its hash shows
    assert not list((tmp_path / "home" / "models").glob("*.partial"))


def test_any_repository_of_the_hub_and_only_what_is_needed(server) -> None:
    others = {"README.md": b"x", "pytorch_model.bin": b"old", "training_args.bin": b"x", "onnx/model.onnx": b"x"}
    fill_hub(server, {**FILES, **others})
    del PRESETS["small"]
    assert contents(resolve(REPO)) == FILES


def test_weights_that_a_newer_commit_did_not_change_are_not_downloaded_again(
    server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_hub(server)
    earlier = resolve("small")
    (earlier / "tokenizer.model").unlink()
    monkeypatch.setattr(hub_server, "COMMIT", "d" * 40)
    fill_hub(server, {**FILES, "config.json": b'{"a": 2}'})
    newer = resolve("small", weights=False)  # the snapshot that "main" names from now on
    server.asked.clear()
    assert newer != earlier and resolve("small") == newer
    assert contents(newer) == {**FILES, "config.json": b'{"a": 2}'}
    assert not any(path.endswith("safetensors") for path in server.asked)
    monkeypatch.setattr(hub_server, "COMMIT", "e" * 40)
    changed = {**FILES, "model.safetensors": WEIGHTS[:10] + WEIGHTS[10:][::-1]}
    fill_hub(server, changed)
    (newer / "tokenizer.model").unlink()
    assert contents(resolve("small")) == changed


def test_everything_that_was_tried_is_told(server, tmp_path: Path) -> None:
    with pytest.raises(HubError) as raised:
        resolve("small")
    message = str(raised.value)
    address = f"http://127.0.0.1:{server.server_port}"
    for part in (str(tmp_path / "home" / "models" / "small"), f"mirror {address}/mirror", "config.json", "404"):
        assert part in message
    assert f"Hugging Face hub {address}: {address}/{REPO}: " in message
    assert "SHARE4V_MIRROR or HF_ENDPOINT" in message


def test_offline_without_a_cache_says_so_and_opens_no_connection(server, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_mirror(server)
    no_sockets(monkeypatch)
    with pytest.raises(HubError, match="the network: not used"):
        resolve("small", local_files_only=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="the network: not used"):
        resolve("someone/else")


def test_too_little_room_ends_the_search(server) -> None:
    fill_mirror(server)
    server.files["/mirror/small/manifest.json"] = manifest(FILES, size=10**15)
    with pytest.raises(NoSpaceError, match=r"needs 3000000\.00 GB and the disk of .* has \d+\.\d\d GB free"):
        resolve("small")
    server.files.clear()
    fill_hub(server)
    info = json.loads(server.files[f"/api/models/{REPO}"])
    info["siblings"][2]["size"] = 10**15
    server.files[f"/api/models/{REPO}"] = json.dumps(info).encode()
    with pytest.raises(NoSpaceError, match="needs 1000000"):
        resolve("small")


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/b.json", ".hidden", ""])
def test_a_manifest_cannot_lead_out_of_its_folder(server, tmp_path: Path, name: str) -> None:
    entry = {"name": name, "size": 1, "sha256": "0" * 64}
    server.files["/mirror/small/manifest.json"] = json.dumps({"files": [entry]}).encode()
    with pytest.raises(HubError, match="is not a manifest"):
        resolve("small")


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"files": [{}]}', b'{"files": [{"name": "x", "size": "5"}]}'])
def test_a_broken_manifest_is_told(server, body: bytes) -> None:
    server.files["/mirror/small/manifest.json"] = body
    with pytest.raises(HubError, match=r"is not a manifest|manifest\.json is not JSON"):
        resolve("small")


def test_a_file_that_the_mirror_lacks_leaves_nothing_visible(server, tmp_path: Path) -> None:
    fill_mirror(server)
    del server.files["/mirror/small/model.safetensors"]
    with pytest.raises(HubError, match=r"model\.safetensors answered with HTTP status 404"):
        resolve("small")
    assert not (tmp_path / "home" / "models" / "small").exists()


RACER = """
import sys
from mindone.models.share4v.hub import PRESETS, Preset, resolve
PRESETS["small"] = Preset("someone/small", ())
print(resolve("small"))
"""


def test_two_processes_that_race_download_once(server) -> None:
    fill_mirror(server)
    racers = [subprocess.Popen([sys.executable, "-c", RACER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [racer.communicate(timeout=300)[0].strip().splitlines()[-1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert outputs[0] == outputs[1] and contents(Path(outputs[0])) == FILES
    assert server.asked.count("/mirror/small/model.safetensors") == 1


def before_lock(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> list[object]:
    """Do something as another process would, just before a lock is taken for the time `number`, which counts from 1.

    Returns:
        A list that gets what `action` returns.
    """
    results: list[object] = []
    acquire, calls = FileLock.acquire, [0]

    def acquired(self: FileLock, *arguments: Any, **options: Any) -> object:
        calls[0] += 1
        if calls[0] == number:
            results.append(action())
        return acquire(self, *arguments, **options)

    monkeypatch.setattr(FileLock, "acquire", acquired)
    return results


@pytest.mark.parametrize("fill", [fill_mirror, fill_hub])
def test_a_model_that_is_removed_while_a_process_waits_to_download_it_is_downloaded(
    server, monkeypatch: pytest.MonkeyPatch, fill: Callable[..., None]
) -> None:
    fill(server)
    resolve("small", weights=False)
    lock = 1 if fill is fill_mirror else 2  # the mirror is asked before the hub
    removed = before_lock(monkeypatch, lock, lambda: inventory.remove_model("small").status)
    assert contents(resolve("small")) == FILES and removed == ["partial"]


@pytest.mark.parametrize("lock", [1, 2])
def test_no_download_gets_in_between_the_two_directories_of_a_removal(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: int
) -> None:
    fill_mirror(server)
    directory = resolve("small", weights=False)
    partial = mirror.partial_directory(directory)
    partial.mkdir()
    (partial / "model.safetensors.part").write_bytes(b"1")
    before_lock(monkeypatch, lock, lambda: resolve("small"))
    entry = inventory.remove_model("small")
    assert not directory.exists() and not partial.exists()
    # What was removed is told: a model, if another process completed it while this one waited.
    assert (entry.status, entry.bytes_on_disk > len(WEIGHTS)) == (("cached", True) if lock == 1 else ("partial", False))


def test_a_download_that_completes_while_its_removal_waits_is_removed(server, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_mirror(server)
    partial = mirror.partial_directory(mirror.preset_directory("small", cache_root()))
    partial.mkdir(parents=True)
    (partial / "model.safetensors.part").write_bytes(b"1")
    downloaded = before_lock(monkeypatch, 1, lambda: resolve("small"))
    assert inventory.remove_model("small").status == "cached"
    assert isinstance(downloaded[0], Path) and not downloaded[0].exists() and not partial.exists()


def test_who_waits_for_another_process_is_told(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill_mirror(server)
    monkeypatch.setattr(cache, "NOTICE_SECONDS", 0.0, raising=False)
    directory = mirror.preset_directory("small", cache_root())
    other = FileLock(cache.lock_path(directory))
    other.acquire()
    wait = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            wait.set()

    handler = Handler(logging.WARNING)
    logging.getLogger("mindone").addHandler(handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            download = pool.submit(resolve, "small")
            is_told = wait.wait(60)
            other.release()
            assert contents(download.result(300)) == FILES
    finally:
        logging.getLogger("mindone").removeHandler(handler)
    assert is_told
    assert f"another process downloads {directory}, or removes it: waiting" in caplog.text
    assert server.asked.count("/mirror/small/model.safetensors") == 1


def test_a_directory_is_taken_as_it_is_and_a_path_must_exist(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert resolve(tmp_path / "mine") == tmp_path / "mine"
    assert resolve("mine") == Path("mine")
    with pytest.raises(FileNotFoundError, match="no directory"):
        resolve("./not-there")
    with pytest.raises(FileNotFoundError, match="no directory"):
        resolve(tmp_path / "not-there")
    (tmp_path / "x.ckpt").write_bytes(b"1")
    with pytest.raises(FileNotFoundError, match="is a file: give the directory"):
        resolve("x.ckpt")


def test_a_folder_called_like_a_preset_hides_it_only_if_it_is_a_checkpoint(server, tmp_path: Path) -> None:
    fill_mirror(server)
    (tmp_path / "small").mkdir()
    assert resolve("small") != Path("small")
    (tmp_path / "small" / "config.json").write_text("{}")
    assert resolve("small") == Path("small")


def test_an_unknown_name_tells_the_known_ones_and_the_closest() -> None:
    with pytest.raises(HubError, match=r"known: .*sharegpt4v-13b.* Did you mean 'sharegpt4v-7b'\?"):
        resolve("sharegpt4v-7B")


def test_a_checkpoint_that_comes_with_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_sockets(monkeypatch)
    monkeypatch.setattr(hub.presets, "files", lambda package: tmp_path / package)
    monkeypatch.setitem(PRESETS, "inside", Preset(embedded="assets/inside"))
    with pytest.raises(HubError, match="install mindone-share4v again"):
        resolve("inside")
    directory = tmp_path / "mindone.models.share4v" / "assets" / "inside"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    assert resolve("inside") == directory


def test_the_published_presets_have_sources() -> None:
    for name in ("sharegpt4v-7b", "sharegpt4v-13b"):
        preset = PRESETS[name]
        count = len([file for file in preset.files if re.fullmatch(r"pytorch_model-\d{5}-of-\d{5}\.bin", file)])
        assert preset.repo and count == {"sharegpt4v-7b": 2, "sharegpt4v-13b": 3}[name]
        assert choose_files(preset.files, weights=True) and set(choose_files(preset.files, True)) == set(preset.files)
        tower = PRESETS[f"{name}-vision-tower"]
        assert tower.repo == f"{preset.repo}_Pretrained_vit-large336-l12"
    assert PRESETS["sharegpt4v-tiny"].embedded == "assets/sharegpt4v-tiny"


def test_a_directory_without_a_config_is_not_reported_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "exp1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"directory runs/exp1 exists, but has no config\.json: it is empty"):
        resolve("runs/exp1", cache_dir=tmp_path / "cache", local_files_only=True)


def test_a_revision_and_a_subfolder_of_a_repository(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {f"inner/{name}": body for name, body in FILES.items()} | {
        "config.json": b"{}",
        "inner/deep/config.json": b"{}",
    }
    fill_hub(server, other)
    server.files[f"/api/models/{REPO}/revision/v2%2Fb"] = server.files.pop(f"/api/models/{REPO}")
    options = RepoOptions("v2/b", "hf_secret", "inner")
    sent = []
    monkeypatch.setattr(Handler, "do_GET", lambda self: (sent.append(self.headers["Authorization"]), answer(self)))
    found = resolve(REPO, repo_options=options)
    assert contents(found) == FILES and found.name == "inner"
    assert set(sent) == {"Bearer hf_secret"}
    server.asked.clear()
    assert resolve(REPO, repo_options=options, local_files_only=True) == found
    assert resolve(REPO, repo_options=RepoOptions("c" * 40, None, "inner"), local_files_only=True) == found
    assert server.asked == []
    with pytest.raises(HubError, match="missing or incomplete"):
        resolve(REPO, local_files_only=True)
    with pytest.raises(HubError, match=r"has no lost/config.json"):
        resolve(REPO, repo_options=RepoOptions("v2/b", subfolder="lost"))


answer = Handler.do_GET
