"""Model folders and command lines of the earlier MindSpore port work, or report what to use instead.

The command lines are those in the README and the scripts of mindone's own examples/sharegpt_4v.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.earlier_port import LLAMA_CKPT, TINY, TOWER_CKPT, write_configs, write_port
from helpers.paths import EXAMPLES
from helpers.warm_processes import warm_python

from mindone.models.share4v import Share4V
from mindone.models.share4v.checkpoint import CheckpointError
from mindone.pipelines import pipeline

SCENE = EXAMPLES / "scene.png"
TIMEOUT = 300


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder of the port, with the configuration files that it kept among its sources."""
    return write_port(tmp_path_factory.mktemp("port") / "ms_share4v_model_folder")


@pytest.fixture(scope="module")
def caption() -> str:
    """Return the caption of the same weights in this package's own format."""
    return pipeline("image-to-text", dtype="float32")(str(SCENE))[0]["generated_text"]


def run(script: str, *arguments: str | Path, cwd: Path = EXAMPLES) -> subprocess.CompletedProcess[str]:
    command = [warm_python(), script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=TIMEOUT)
    assert "Traceback" not in done.stderr
    return done


def refused(script: str, *arguments: str | Path) -> str:
    """Run a command that must end with a usage error, and return the error on one line."""
    done = run(script, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    return " ".join(done.stderr.split()).partition(": error: ")[2]  # after the usage


def test_the_folder_loads_directly(port: Path, caption: str) -> None:
    assert pipeline("image-to-text", model=port)(str(SCENE))[0]["generated_text"] == caption


def test_the_ports_command_line_answers(port: Path, caption: str) -> None:
    """`python share4v/eval/run_share4v.py --model-path ... --image-file ...`, from examples/sharegpt_4v."""
    done = run("share4v/eval/run_share4v.py", "--model-path", port, "--image-file", SCENE)
    assert (done.returncode, done.stdout) == (0, f"{caption}\n"), done.stderr


def test_its_other_flags_work_too(port: Path, caption: str) -> None:
    flags = ("--query", "Describe this image", "--conv-mode", "vicuna_v1")
    assert run("run_share4v.py", "--model-path", port, "--image-file", SCENE, *flags).stdout == f"{caption}\n"


def test_model_base_is_refused_since_it_never_had_an_effect(port: Path) -> None:
    said = refused("run_share4v.py", "--model-path", port, "--image-file", SCENE, "--model-base", "x")
    assert "--model-base never had an effect" in said and "leave it out" in said


def test_run_sh_with_unedited_paths_reports_the_missing_directory() -> None:
    said = refused(
        "share4v/eval/run_share4v.py", "--model-path", "/path/to/model/folder", "--image-file", "/path/to/image/file"
    )
    assert "there is no directory /path/to/model/folder" in said


def test_a_missing_image_is_a_failure(port: Path) -> None:
    done = run("run_share4v.py", "--model-path", port, "--image-file", "/path/to/image/file")
    assert (done.returncode, done.stdout) == (1, "") and "/path/to/image/file" in done.stderr


def test_a_ckpt_file_instead_of_its_folder_is_refused(port: Path) -> None:
    for path in (port / LLAMA_CKPT, str(port / LLAMA_CKPT)):
        with pytest.raises(FileNotFoundError, match="is a file: give the directory that holds it"):
            Share4V.from_pretrained(path)
    assert "give the directory that holds it" in refused(
        "run_share4v.py", "--model-path", port / LLAMA_CKPT, "--image-file", SCENE
    )


def test_a_folder_without_configs_reports_where_to_copy_them_from(tmp_path: Path, caption: str) -> None:
    folder = write_port(tmp_path / "model", configs=False)
    with pytest.raises(FileNotFoundError, match=r"copy config\.json and vit/ from its share4v/configs"):
        Share4V.from_pretrained(folder)
    assert "copy config.json and vit/" in refused("run_share4v.py", "--model-path", folder, "--image-file", SCENE)
    write_configs(folder, str(folder / TOWER_CKPT))  # the advice works
    assert pipeline("image-to-text", model=folder)(str(SCENE))[0]["generated_text"] == caption


def test_a_vision_tower_outside_the_folder_is_asked_for_by_name(tmp_path: Path, caption: str) -> None:
    folder = write_port(tmp_path / "model", tower="../weights")
    tower = tmp_path / "weights" / TOWER_CKPT
    with pytest.raises(CheckpointError, match=rf"copy that file into {folder}") as raised:
        Share4V.from_pretrained(folder)
    assert str(tower.name) in str(raised.value)
    shutil.copy(tower, folder)  # the advice works
    assert pipeline("image-to-text", model=folder)(str(SCENE))[0]["generated_text"] == caption


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a PyTorch checkpoint like those that the port converted: model and vision tower, with tiny's weights."""
    import json

    import torch
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("original")
    model, tower = folder / "pt_share4v_model_folder", folder / "pt_vit_folder"
    write_configs(model, "")
    shutil.move(model / "vit", tower)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "pt_vit_folder"}))
    shutil.copy(TINY / "tokenizer.model", model)
    weights: dict[Path, dict[str, torch.Tensor]] = {model: {}, tower: {}}
    for name, tensor in load_file(TINY / "model.safetensors").items():
        part = tower if name.startswith("vision_tower.") else model
        prefixes = {"vision_tower.": "", "mm_projector.": "model.mm_projector.", "language_model.": ""}
        prefix = next(item for item in prefixes if name.startswith(item))
        weights[part][prefixes[prefix] + name.removeprefix(prefix)] = tensor
    for part, tensors in weights.items():
        torch.save(tensors, part / "pytorch_model.bin")
    return model, tower


def test_the_ports_conversion_of_a_folder_works(original: tuple[Path, Path], tmp_path: Path, caption: str) -> None:
    """`python convert_weights.py --source FOLDER --target FOLDER`, also from share4v/tools."""
    target = tmp_path / "ms_share4v_model_folder"
    done = run("share4v/tools/convert_weights.py", "--source", original[0], "--target", target)
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    assert pipeline("image-to-text", model=target)(str(SCENE))[0]["generated_text"] == caption


def test_its_own_ckpt_files_can_be_converted(port: Path, tmp_path: Path, caption: str) -> None:
    target = tmp_path / "out"
    assert run("convert_weights.py", "--source", port, "--target", target).returncode == 0
    assert sorted(path.suffix for path in target.iterdir() if path.suffix in (".ckpt", ".safetensors")) == [
        ".safetensors"
    ]
    assert pipeline("image-to-text", model=target)(str(SCENE))[0]["generated_text"] == caption


def test_a_list_of_files_is_refused_with_their_folder_as_advice(original: tuple[Path, Path], tmp_path: Path) -> None:
    """`--source a.bin,b.bin`, which the script accepted before its README asked for a folder."""
    shards = ",".join(str(original[0] / f"pytorch_model-0000{number}-of-00002.bin") for number in (1, 2))
    said = refused("convert_weights.py", "--source", shards, "--target", tmp_path / "out")
    assert said.endswith(f"--source {original[0]}")
    one = refused("convert_weights.py", "--source", original[0] / "pytorch_model.bin", "--target", tmp_path / "out")
    assert "give the directory that holds it" in one
    assert not (tmp_path / "out").exists()


def test_a_ckpt_target_is_refused_with_a_folder_as_advice(original: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "ms_model.ckpt"
    said = refused("convert_weights.py", "--source", original[0], "--target", target)
    assert f"--target {tmp_path / 'ms_model'} " in said and not target.exists()


def test_a_vision_tower_without_its_model_is_refused_with_advice(original: tuple[Path, Path], tmp_path: Path) -> None:
    """`convert_weights.py --source pt_vit_folder --target .../vit-large336-l12.ckpt`, and with a folder as target."""
    model, tower = original
    for target in (tmp_path / TOWER_CKPT, tmp_path / "out"):
        said = refused("convert_weights.py", "--source", tower, "--target", target)
        assert "vision tower" in said and "--vision-tower" in said
    done = run("convert_weights.py", "--source", model, "--vision-tower", tower, "--target", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_the_scripts_in_the_old_folders_only_run_the_new_ones() -> None:
    for path in (EXAMPLES / "share4v").rglob("*.py"):
        assert len(path.read_text().splitlines()) < 10 and (EXAMPLES / path.name).is_file()
        assert not os.path.islink(path)  # noqa: PTH114 - links do not survive in wheels and on Windows
