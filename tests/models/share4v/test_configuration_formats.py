"""Where a vision tower is found: local paths, presets, the home directory, and what is assumed where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mindone.models.share4v import Share4VConfig
from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError
from mindone.models.share4v.hub import PRESETS, Preset
from mindone.models.share4v.load_options import CheckpointOptions
from mindone.models.share4v.processing.image_processor import ImageProcessor

VISION = {"model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3}
VISION |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TEXT = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
ORIGINAL = {"model_type": "share4v", **TEXT, "mm_hidden_size": 8}


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def write(directory: Path, data: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(data), encoding="utf-8")
    return directory


def checkpoint(tmp_path: Path, named: str | None = None) -> Path:
    return write(tmp_path / "all" / "main", {**ORIGINAL, "mm_vision_tower": named})


@pytest.mark.parametrize(
    "named, place",
    [("vit", "all/main/vit"), ("vit", "all/vit"), ("gone/before/vit", "all/vit"), ("~/vit", "home/vit")],
)
def test_the_config_follows_a_tower_on_this_machine(tmp_path: Path, named: str, place: str) -> None:
    directory = checkpoint(tmp_path, named)
    with pytest.raises(ValueError, match="mm_hidden_size 8 contradicts"):
        Share4VConfig.from_pretrained(directory)
    write(tmp_path / place, VISION)
    config = Share4VConfig.from_pretrained(directory)
    assert (config.vision_config.num_hidden_layers, config.num_image_tokens) == (3, 4)
    assert config == Checkpoint.open(directory, weights=False).config


def test_a_tower_that_is_asked_for_comes_before_the_one_that_is_named(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, "vit")
    write(tmp_path / "all" / "vit", VISION)
    other = write(tmp_path / "home" / "other", {**VISION, "image_size": 56})
    for tower in (other, "~/other"):
        assert Share4VConfig.from_pretrained(directory, tower).num_image_tokens == 16
        assert (
            Checkpoint.open(directory, CheckpointOptions(vision_tower=tower), weights=False).vision_directory == other
        )


@pytest.mark.parametrize("name", ["small-tower", "someone/small-tower"])
def test_a_preset_is_a_tower_by_either_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(PRESETS, "small-tower", Preset("someone/small-tower"))
    tower = write(tmp_path / "cache" / "models" / "small-tower", VISION)
    size = (tower / "config.json").stat().st_size
    record = {"source": "", "weights": False, "files": [{"name": "config.json", "size": size}]}
    (tower / ".share4v.json").write_text(json.dumps(record), encoding="utf-8")
    assert (
        Checkpoint.open(checkpoint(tmp_path), CheckpointOptions(vision_tower=name), weights=False).vision_directory
        == tower
    )
    assert Checkpoint.open(checkpoint(tmp_path, name), weights=False).vision_directory == tower


@pytest.mark.parametrize("name", ["no-such-tower", "a/b/c"])
def test_what_is_no_name_is_not_asked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"was not found:\n- directory [^\n]*: does not exist$"):
        Checkpoint.open(checkpoint(tmp_path), CheckpointOptions(vision_tower=name), weights=False)


@pytest.mark.parametrize("hidden, edge", [(8, 28), (1152, 384), (1024, 224), (7, 10)])
def test_without_a_tower_the_pictures_are_those_of_the_preprocessor(tmp_path: Path, hidden: int, edge: int) -> None:
    directory = write(tmp_path, {**ORIGINAL, "mm_hidden_size": hidden, "mm_vision_tower": "someone/gone"})
    saved = ImageProcessor(edge, edge)
    saved.save_pretrained(directory)
    config = Checkpoint.open(directory, weights=False).config
    assert (config.vision_config.hidden_size, config.vision_config.image_size) == (hidden, edge)
    assert ImageProcessor.from_pretrained(directory, config) == saved
