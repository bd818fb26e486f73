"""The cache's own questions: where it is, which files it keeps, and when a directory is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindone.models.share4v.hub.cache import cache_root, choose_files, has_all_files, has_companions


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home"
    assert cache_root(tmp_path / "x") == tmp_path / "x"
    monkeypatch.delenv("SHARE4V_HOME")
    assert cache_root() == Path.home() / ".cache" / "share4v"


def test_one_form_of_the_weights_is_chosen() -> None:
    names = ["config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors", "notes.md"]
    names += ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "optimizer.bin", "sub/config.json"]
    assert choose_files(names, weights=True) == names[:2] + names[2:3]
    assert choose_files(names[3:] + names[:1], weights=True) == [names[4], "config.json", names[5]]
    assert choose_files(names, weights=False) == names[:2]
    assert choose_files(["config.json", "a.ckpt", "b.ckpt"], weights=True) == ["config.json", "a.ckpt", "b.ckpt"]


def test_when_a_directory_has_all_files(tmp_path: Path) -> None:
    assert not has_all_files(tmp_path, weights=False)
    (tmp_path / "config.json").write_text("{}")
    assert has_all_files(tmp_path, weights=False) and not has_all_files(tmp_path, weights=True)
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"1")
    assert not has_all_files(tmp_path, weights=True)
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert not has_all_files(tmp_path, weights=True)
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(b"1")
    assert has_all_files(tmp_path, weights=True)


def test_a_language_model_needs_a_tokenizer_that_can_be_read(tmp_path: Path) -> None:
    """Other programs may fetch tokenizer.json alone; only a byte-level one is complete without tokenizer.model."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert not has_companions(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"decoder": {"type": "ByteFallback"}}))
    assert not has_companions(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": {"type": "ByteLevel"}}, indent=2))
    assert not has_companions(tmp_path)  # nothing names its eos_token
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert has_companions(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"1")
    assert has_companions(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": {}}))
    assert not has_companions(tmp_path)
