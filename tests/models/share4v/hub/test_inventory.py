"""The list of named checkpoints, and removing downloads."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from mindone.models.share4v.hub import PRESETS, HubError
from mindone.models.share4v.hub.cache import lock_path, write_record
from mindone.models.share4v.hub.inventory import list_models, remove_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "huggingface"))
    return tmp_path / "cache"


def download(directory: Path, is_complete: bool = True) -> Path:
    """Write what a completed or interrupted download leaves."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"12345678")
    if is_complete:
        files = [{"name": "config.json", "size": 2}, {"name": "model.safetensors", "size": 8}]
        write_record(directory, "here", True, files)
    return directory


def test_every_preset_is_listed(cache: Path) -> None:
    entries = {entry.name: entry for entry in list_models()}
    assert list(entries) == list(PRESETS) and not cache.exists()
    assert entries["sharegpt4v-tiny"].status == "included" and 3e6 < entries["sharegpt4v-tiny"].bytes_on_disk < 8e6
    assert entries["sharegpt4v-7b"].status == "not cached" and entries["sharegpt4v-7b"].download_bytes == 13_518_790_656


def test_downloads_of_both_kinds(cache: Path) -> None:
    download(cache / "models" / "sharegpt4v-7b")
    download(cache / "models" / "sharegpt4v-13b", is_complete=False)
    repo = cache / "huggingface" / "models--owner--my--model"
    download(repo / "snapshots" / ("a" * 40))
    (repo / "snapshots" / "link").symlink_to(repo / "snapshots" / ("a" * 40))  # counted once
    entries = {entry.name: entry for entry in list_models()}
    assert entries["sharegpt4v-7b"].status == "cached" and entries["sharegpt4v-7b"].bytes_on_disk > 10
    assert entries["sharegpt4v-13b"].status == "partial" and entries["sharegpt4v-13b"].bytes_on_disk == 10
    assert entries["owner/my--model"].status == "cached" and entries["owner/my--model"].directories == (repo,)
    assert remove_model("owner/my--model").name == "owner/my--model"
    assert remove_model("Lin-Chen/ShareGPT4V-7B").name == "sharegpt4v-7b"  # a preset by its repository
    assert remove_model("sharegpt4v-13b").status == "partial"
    left = [path for path in cache.rglob("*") if path.is_file()]
    assert len(left) == 3 and all(path.suffix == ".lock" and path.stat().st_size == 0 for path in left)


def test_an_interrupted_download_of_a_preset_is_listed_and_removed(cache: Path) -> None:
    (cache / "models" / "sharegpt4v-7b.partial").mkdir(parents=True)
    (cache / "models" / "sharegpt4v-7b.partial" / "model.safetensors.part").write_bytes(b"12345")
    entries = {entry.name: entry for entry in list_models()}
    assert (entries["sharegpt4v-7b"].status, entries["sharegpt4v-7b"].bytes_on_disk) == ("partial", 5)
    assert remove_model("sharegpt4v-7b").status == "partial"
    assert not (cache / "models" / "sharegpt4v-7b.partial").exists()


def test_a_lock_that_others_may_wait_for_stays(cache: Path) -> None:
    directory = download(cache / "models" / "sharegpt4v-7b")
    with FileLock(lock_path(directory)):
        before = lock_path(directory).stat().st_ino
    remove_model("sharegpt4v-7b")
    assert lock_path(directory).stat().st_ino == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sharegpt4v-tiny", "part of the package"),
        ("sharegpt4v-7b", "is not in the download cache"),
        ("sharegpt4v-8b", "Did you mean 'sharegpt4v-7b'"),
        ("../../etc", "unknown checkpoint"),
    ],
)
def test_what_cannot_be_removed(name: str, message: str) -> None:
    with pytest.raises(HubError, match=message):
        remove_model(name)


def test_a_link_is_removed_and_its_target_stays(cache: Path, tmp_path: Path) -> None:
    target = download(tmp_path / "elsewhere")
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "sharegpt4v-7b").symlink_to(target)
    assert remove_model("sharegpt4v-7b").status == "cached"
    assert not (cache / "models" / "sharegpt4v-7b").exists() and (target / "model.safetensors").exists()
