"""Directories that exist and are no checkpoints: what they are is reported, never that they are missing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mindone.models.share4v import convert
from mindone.models.share4v.checkpoint import Checkpoint
from mindone.models.share4v.hub import resolve
from mindone.models.share4v.load_options import CheckpointOptions

TINY = resolve("sharegpt4v-tiny")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "cache"))

    def connect(*arguments: object, **keywords: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("mindone.models.share4v.hub.resolution.fetch_repo", connect)
    monkeypatch.setattr("mindone.models.share4v.hub.resolution.fetch_preset", connect)


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_adapter(directory: Path) -> None:
    """Write the files of a LoRA adapter as PEFT does."""
    write(directory / "adapter_config.json", json.dumps({"base_model_name_or_path": "lmsys/vicuna-7b", "r": 8}))
    write(directory / "adapter_model.safetensors")


CONTENTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "logs only": (lambda path: write(path / "events.log"), "it holds events.log; a checkpoint's directory has"),
    "empty": (lambda path: path.mkdir(parents=True), "it is empty"),
    "adapter": (write_adapter, "it holds a LoRA adapter for 'lmsys/vicuna-7b', not a complete model: give that"),
    "checkpoints of a trainer": (
        lambda path: [write(path / f"checkpoint-{n}" / "config.json", "{}") for n in (500, 900)] and None,
        "its subdirectories checkpoint-500, checkpoint-900 hold checkpoints: give one of them",
    ),
    "adapters of a trainer": (
        lambda path: write_adapter(path / "checkpoint-500"),
        "its subdirectories checkpoint-500 hold LoRA adapters",
    ),
    "diffusers": (lambda path: write(path / "model_index.json"), "a diffusers pipeline"),
    "data set": (
        lambda path: write(path / "dataset_info.json"),
        "it holds a data set: give it to share4v caption-data",
    ),
    "damaged adapter": (lambda path: write(path / "adapter_config.json", "[1"), "it holds a LoRA adapter, not a"),
}


@pytest.mark.parametrize("name", ["runs/exp1", "./runs/exp1", "exp1"])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_directory_that_is_no_checkpoint(name: str, content: str) -> None:
    make, message = CONTENTS[content]
    make(Path(name))
    with pytest.raises(FileNotFoundError) as error:
        Checkpoint.open(name)
    text = str(error.value)
    assert message in text and "no config.json" in text and "does not exist" not in text and "Tried" not in text


def test_a_directory_with_the_config_of_a_model_and_the_weights_of_an_adapter(tmp_path: Path) -> None:
    """LLaVA's LoRA training writes both."""
    directory = tmp_path / "llava-lora"
    write_adapter(directory)
    shutil.copy(TINY / "config.json", directory)
    with pytest.raises(ValueError, match="has no weights of a model: it holds a LoRA adapter for 'lmsys/vicuna-7b'"):
        Checkpoint.open(directory)


def test_a_directory_with_the_name_of_a_preset_is_used_only_if_it_is_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "sharegpt4v-tiny" / "notes.txt")
    assert resolve("sharegpt4v-tiny") == TINY


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096}, "a language model (model_type 'llama')"),
        ({"model_type": "share4v", "vocab_size": 32000}, "a complete model (model_type 'share4v')"),
        ({"vocab_size": 5}, "a language model (model_type None)"),
    ],
)
def test_a_language_model_as_vision_tower(config: dict[str, object], kind: str, tmp_path: Path) -> None:
    write(tmp_path / "vicuna" / "config.json", json.dumps(config))
    write(tmp_path / "vicuna" / "model.safetensors")
    with pytest.raises(ValueError) as error:
        Checkpoint.open(TINY, CheckpointOptions(vision_tower="vicuna"))
    assert f"vision_tower 'vicuna' is {kind}, not a vision tower: give" in str(error.value)


def test_a_language_model_and_a_vision_tower_as_model(tmp_path: Path) -> None:
    write(tmp_path / "one" / "config.json", json.dumps({"model_type": "llama", "vocab_size": 3}))
    with pytest.raises(ValueError, match="This is a language model, which cannot see images by itself"):
        Checkpoint.open("./one")
    write(tmp_path / "two" / "config.json", json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(ValueError, match="this is only a vision tower"):
        Checkpoint.open("./two")


def test_convert_says_that_the_source_has_no_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "source"
    shutil.copytree(TINY, source)
    with caplog.at_level(logging.WARNING):
        convert(source, tmp_path / "with")
    assert not caplog.records
    (source / "tokenizer.model").unlink()
    with caplog.at_level(logging.WARNING):
        convert(source, tmp_path / "without")
    (record,) = caplog.records
    assert f"{source} has no tokenizer.model, so the result will have none either" in record.getMessage()
