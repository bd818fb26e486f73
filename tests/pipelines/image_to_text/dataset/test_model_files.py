"""A model whose files were replaced between two runs of a job: reported before anything is captioned."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hub_server import serving
from helpers.jobs import png
from safetensors.numpy import load_file, save_file

from mindone.models.share4v import export_gguf, resolve
from mindone.models.share4v.checkpoint.fingerprint import checkpoint_digests, file_digest
from mindone.models.share4v.load_options import CheckpointOptions
from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.dataset.state.job_description import (
    SettingsChangedError,
    changed_settings,
    same_results,
)

TINY = "sharegpt4v-tiny"
NORM = "language_model.model.norm.weight"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(1))
    return tmp_path / "photos"


def run(photos: Path, model: Path | str, **keywords: Any) -> int:
    out = photos.parent / "out.jsonl"
    summary = caption_dataset(photos, out=out, model=str(model), max_new_tokens=2, **keywords)
    return summary.inputs


def job(photos: Path) -> Path:
    return photos.parent / "out.jsonl.share4v" / "job.json"


def train_again(model: Path) -> None:
    """Change weights in place: the file keeps its name, its size and its time."""
    path = model / "model.safetensors"
    before, tensors = path.stat(), load_file(path)
    tensors[NORM] = tensors[NORM] * np.float16(1.5)
    save_file(tensors, path, metadata={"format": "pt"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_weights_that_were_trained_again(photos: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(resolve(TINY), tmp_path / "model"))
    save_file(load_file(model / "model.safetensors"), model / "model.safetensors", metadata={"format": "pt"})
    assert run(photos, model) == 1
    for path in model.iterdir():
        os.utime(path, (1, 1))  # copied again, with the same content
    (photos / "b.png").write_bytes(png(2))
    assert run(photos, model) == 2
    before = (tmp_path / "out.jsonl").read_bytes()
    train_again(model)
    (photos / "c.png").write_bytes(png(3))
    for keywords in ({}, {"dry_run": True}):
        with pytest.raises(
            SettingsChangedError, match=r"model was 'files with the digest \w+', now 'files with"
        ) as raised:
            run(photos, model, **keywords)
    assert [change.argument for change in raised.value.changes] == ["model"]
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert run(photos, model, restart=True) == 3


def test_a_job_of_an_older_version_goes_on_and_says_what_is_unknown(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(photos, TINY) == 1
    stored = json.loads(job(photos).read_text())
    files = stored["model"].pop("model_files")
    assert set(files) == {"model"}
    job(photos).write_text(json.dumps(stored))
    (photos / "b.png").write_bytes(png(2))
    with caplog.at_level(logging.WARNING):
        assert run(photos, TINY) == 2
    assert "whether model has the files of the earlier run is unknown" in caplog.text
    assert json.loads(job(photos).read_text())["model"]["model_files"] == files  # and from now on it is known
    caplog.clear()
    assert run(photos, TINY) == 2 and not caplog.records


def test_a_mmproj_file_that_was_replaced(photos: Path, tmp_path: Path) -> None:
    model, mmproj = tmp_path / "model.gguf", tmp_path / "mmproj.gguf"
    export_gguf(TINY, model, mmproj)
    assert run(photos, model) == 1
    data = bytearray(mmproj.read_bytes())
    data[-1] ^= 1
    mmproj.write_bytes(data)
    with pytest.raises(SettingsChangedError, match=r"vision_tower was 'files with the digest"):
        run(photos, model)


def test_another_model_that_is_downloaded_under_the_same_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are not here when the second run starts: they are compared once they are."""
    model = Path(shutil.copytree(resolve(TINY), tmp_path / "model"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "home"))
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.add_repository("someone/tiny", {path.name: path.read_bytes() for path in model.iterdir()})
        assert run(photos, "someone/tiny") == 1
        assert "model" in json.loads(job(photos).read_text())["model"]["model_files"]
        shutil.rmtree(tmp_path / "home" / "huggingface")
        train_again(model)
        hub.add_repository("someone/tiny", {path.name: path.read_bytes() for path in model.iterdir()})
        (photos / "b.png").write_bytes(png(2))
        with pytest.raises(SettingsChangedError, match="model was 'files with the digest"):
            run(photos, "someone/tiny")


def test_the_digest_of_a_large_file_reads_little_and_sees_a_training_step(tmp_path: Path) -> None:
    path, rng = tmp_path / "model.safetensors", np.random.default_rng(0)
    weights = rng.standard_normal(5 * 2**20).astype(np.float32)  # 20 MiB
    weights.tofile(path)
    before = file_digest(path)
    assert file_digest(path) == before
    (weights + np.float32(1e-6)).tofile(path)
    assert file_digest(path) != before


def test_a_part_that_only_one_description_has_is_no_difference() -> None:
    def described(**files: str) -> dict[str, Any]:
        return {"model": {"model": "m", **({"model_files": files} if files else {})}}

    for before, now in (
        (described(), described(model="a")),
        (described(model="a"), described()),
        (described(model="a", vision_tower="b"), described(model="a")),
    ):
        assert same_results(before, now) and not changed_settings(before, now)
    assert not same_results(described(model="a", vision_tower="b"), described(model="c", vision_tower="b"))


def test_what_is_not_on_this_machine_has_no_digest(tmp_path: Path) -> None:
    assert checkpoint_digests(tmp_path / "none", CheckpointOptions()) == {}
