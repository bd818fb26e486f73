"""--adapter: of every command that loads a model, and of a job's records and description."""

from __future__ import annotations

import json
import os
import re
import shutil
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from helpers.adapters import write_adapter
from helpers.pictures import encoded, scene
from helpers.weights import read_weights

from mindone.models.share4v import AutoConfig
from mindone.models.share4v.checkpoint import Checkpoint
from mindone.models.share4v.load_options import CheckpointOptions
from mindone_share4v.arguments.common import add_adapter_argument
from mindone_share4v.cli import main


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = AutoConfig.from_pretrained("sharegpt4v-tiny").text_config
    return write_adapter(tmp_path_factory.mktemp("adapters") / "lora", text, 0.3)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "a.png"
    path.write_bytes(encoded(scene(0)))
    return path


def test_the_flag_reads_a_directory_and_a_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_adapter_argument(parser.add_argument_group("model"))
    (tmp_path / "run:2").mkdir()
    texts = ["a", "b:0.5", "c:-1e-1", r"C:\d", "d:e", f"{tmp_path}/run:2"]
    flags = [item for text in texts for item in ("--adapter", text)]
    weights = {"a": 1.0, "b": 0.5, "c": -0.1, r"C:\d": 1.0, "d:e": 1.0, f"{tmp_path}/run:2": 1.0}
    assert parser.parse_args(flags).adapter == weights and parser.parse_args([]).adapter is None
    with pytest.raises(SystemExit):
        parser.parse_args(["--adapter", "a:1", "--adapter", "a:2"])
    assert "a is given twice" in capsys.readouterr().err


def test_a_caption_with_an_adapter(lora: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for more in ([], ["--adapter", str(lora)], ["--adapter", f"{lora}:0"]):
        assert main(["caption", str(photo), "--max-new-tokens", "8", *more]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[2] != said[1]


def test_an_adapter_that_cannot_be_used_is_a_usage_error(
    photo: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["caption"], ["caption-dataset", "--out", str(tmp_path / "out.jsonl")], ["convert"]):
        source = ["sharegpt4v-tiny", "--out", str(tmp_path / "out")] if command == ["convert"] else [str(photo)]
        assert main([*command, *source, "--adapter", f"{tmp_path}/nowhere"]) == 2
        err = capsys.readouterr().err
        assert f"error: --adapter '{tmp_path}/nowhere' is not a directory on this machine" in err
        assert main([*command, *source, "--adapter", f"{lora}:nan"]) == 2
        assert "has the weight nan: expected a finite number" in capsys.readouterr().err
    assert main(["caption", str(photo), "--model", str(lora)]) == 2
    assert "give that model, and this directory as its --adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.jsonl").exists()


def test_a_job_is_resumed_only_with_its_adapter(
    lora: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    command = ["caption-dataset", str(photo.parent), "--out", str(out), "--max-new-tokens", "3"]
    assert main([*command, "--adapter", f"{lora}:0.5"]) == 0
    assert json.loads(out.read_text())["model"] == f"sharegpt4v-tiny + {lora}:0.5"
    assert main([*command, "--adapter", f"{lora}:0.5"]) == 0
    capsys.readouterr()
    assert main(command) == 3
    assert "--adapter was" in capsys.readouterr().err


def test_an_adapter_that_was_trained_again_in_place_is_noticed(
    lora: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = tmp_path / "own", tmp_path / "out.jsonl"
    shutil.copytree(lora, own)
    command = ["caption-dataset", str(photo.parent), "--out", str(out), "--max-new-tokens", "3", "--adapter", str(own)]
    assert main(command) == 0
    before = out.read_bytes()
    for file in own.iterdir():
        os.utime(file, (1, 1))  # a copy with the same content is the same adapter
    assert main(command) == 0
    write_adapter(own, AutoConfig.from_pretrained("sharegpt4v-tiny").text_config, 0.2)
    capsys.readouterr()
    assert main(command) == 3
    assert re.search(r"--adapter was 'files with the digest \w+', now 'files with", capsys.readouterr().err)
    assert out.read_bytes() == before


def test_convert_writes_the_merged_weights(lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert main(["convert", "sharegpt4v-tiny", "--adapter", str(lora), "--out", str(out)]) == 0
    ours = read_weights(Checkpoint.open(out))
    expected = read_weights(Checkpoint.open("sharegpt4v-tiny", CheckpointOptions(adapter=lora)))
    assert all(np.allclose(ours[name], value, atol=1e-2) for name, value in expected.items())
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    assert not np.array_equal(ours[name], read_weights(Checkpoint.open("sharegpt4v-tiny"))[name])
