"""What int4 conversion calibrates on, and what it refuses before it writes anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import captioned_scene
from safetensors.numpy import load_file, save_file

from mindone.models.share4v import Share4V, Share4VProcessor, calibration, convert, load_image, resolve
from mindone.models.share4v.calibration import SEQUENCE, TOKENS, find_pictures, picture_sequences, text_ids
from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError
from mindone.models.share4v.checkpoint.loading import weight_entries
from mindone_share4v.cli import main


def test_sequences_begin_with_bos_and_fit_the_context() -> None:
    checkpoint = Checkpoint.open("sharegpt4v-tiny")
    sequences = text_ids(checkpoint)
    text = checkpoint.config.text_config
    assert all(ids[0] == text.bos_token_id for ids in sequences)
    assert all(1 < len(ids) <= min(SEQUENCE, text.context_length) for ids in sequences)
    assert 0.9 * TOKENS < sum(map(len, sequences)) <= TOKENS + len(sequences)


@pytest.fixture
def without_tokenizer(tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(resolve("sharegpt4v-tiny"), tmp_path / "copy"))
    (copy / "tokenizer.model").unlink()
    return copy


def test_a_missing_tokenizer_is_reported_before_anything_is_written(
    without_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"calibrated on text, which needs the checkpoint's tokenizer.*--fast"):
        convert(without_tokenizer, out, dtype="int4")
    assert main(["convert", str(without_tokenizer), "--out", str(out), "--dtype", "int4"]) == 2
    assert "--fast" in capsys.readouterr().err
    assert not out.exists()
    assert main(["convert", str(without_tokenizer), "--out", str(out), "--dtype", "int4", "--fast"]) == 0


@pytest.mark.parametrize("dtype", [None, "float16", "int8"])
def test_fast_is_for_int4_only(dtype: str | None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fast is for dtype 'int4' only"):
        convert("sharegpt4v-tiny", tmp_path / "out", dtype=dtype, fast=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["layers.1.input_layernorm.weight", "layers.0.mlp.down_proj.weight", "norm.weight"])
def test_weights_that_are_no_numbers_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "TOKENS", 300)
    copy = Path(shutil.copytree(resolve("sharegpt4v-tiny"), tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    weights[f"language_model.model.{name}"][..., -1] = np.nan
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}: values are not finite"):
        convert(copy, tmp_path / "out", dtype="int4")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(16):
        captioned_scene(number)[0].save(folder / f"{number:02}.png")
    return folder


def sequences_of(pictures: list[Path]) -> list[np.ndarray]:
    checkpoint = Checkpoint.open("sharegpt4v-tiny")
    return picture_sequences(checkpoint, weight_entries(checkpoint), pictures)


def test_pictures_become_what_the_model_makes_of_their_prompts(scenes: Path, tmp_path: Path) -> None:
    plain = find_pictures(scenes, 1)[0]
    captioned = Path(shutil.copy(plain, tmp_path / "captioned.png"))
    captioned.with_suffix(".txt").write_text("A large red circle.\n")
    model = Share4V.from_pretrained("sharegpt4v-tiny", dtype="float32")
    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
    inputs = processor(images=load_image(plain))
    answer = processor.tokenizer.encode("A large red circle.", add_bos=False)
    for sequence, ids in zip(
        sequences_of([plain, captioned]),
        (inputs["input_ids"], np.concatenate((inputs["input_ids"], [answer]), 1)),
        strict=True,
    ):
        prompts = model.prepare_inputs(ids, pixel_values=inputs["pixel_values"])
        np.testing.assert_array_equal(sequence, prompts.table.asnumpy()[prompts.index[0]])


def test_pictures_are_spread_over_a_folder_and_those_that_cannot_be_read_are_named(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert [path.name for path in find_pictures(scenes, 4)] == ["00.png", "05.png", "10.png", "15.png"]
    assert len(find_pictures(scenes)) == 16
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    assert len(sequences_of([tmp_path / "broken.jpg", scenes / "00.png"])) == 1
    assert "broken.jpg" in caplog.text and "left out of the calibration" in caplog.text
    with pytest.raises(ValueError, match="none of 1 pictures can be read"):
        sequences_of([tmp_path / "broken.jpg"])


def test_folders_without_pictures_and_other_types_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", "sharegpt4v-tiny", "--out", str(tmp_path / "out"), "--calibrate"]
    assert main([*arguments, str(tmp_path), "--dtype", "int4"]) == 2
    assert "has no image files" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "missing"), "--dtype", "int4"]) == 2
    assert "is not a folder" in capsys.readouterr().err
    for others in (["--dtype", "int8"], [], ["--dtype", "int4", "--fast"]):
        assert main([*arguments, str(tmp_path), *others]) == 2
        assert "--calibrate is for int4, without --fast" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_captions_of_rounded_weights_are_nearer_if_pictures_calibrate(scenes: Path, tmp_path: Path) -> None:
    """The text has its usual length: of a short one, GPTQ would believe little either way."""
    for number in range(16):
        (scenes / f"{number:02}.txt").write_text(captioned_scene(number)[1])
    evaluated = [captioned_scene(number) for number in range(16, 24)]
    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")

    def log_probabilities(model: Share4V) -> np.ndarray:
        found = []
        for image, text in evaluated:
            inputs, answer = processor(images=image), processor.tokenizer.encode(text, add_bos=False)
            ids = np.concatenate((inputs["input_ids"], [answer]), 1)
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits.asnumpy()[0, -len(answer) - 1 :]
            found.append(logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True)))
        return np.concatenate(found)

    exact = log_probabilities(Share4V.from_pretrained("sharegpt4v-tiny", dtype="float32"))
    divergences = []
    for name, folder in (("text", None), ("pictures", scenes)):
        convert("sharegpt4v-tiny", tmp_path / name, dtype="int4", calibrate=folder)
        rounded = log_probabilities(Share4V.from_pretrained(tmp_path / name))
        divergences.append(float((np.exp(exact) * (exact - rounded)).sum(-1).mean()))
    assert divergences[1] < 0.5 * divergences[0], divergences


def test_hidden_folders_hold_no_pictures_to_calibrate_on(tmp_path: Path) -> None:
    (tmp_path / ".trash").mkdir()
    for name in ("a.png", ".trash/b.png", ".c.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_pictures(tmp_path)] == ["a.png"]
