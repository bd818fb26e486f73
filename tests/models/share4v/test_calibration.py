"""What int4 conversion calibrates on, and what it refuses before it writes anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindone.models.share4v import calibration, convert, resolve
from mindone.models.share4v.calibration import SEQUENCE, TOKENS, text_ids
from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError
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
