"""share4v with other types of weights and KV caches: convert to integers, caption with them, refuse unknown types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindone.pipelines import pipeline
from mindone_share4v.cli import main
from mindone_share4v.printing import one_line

TOKENS = ["--max-new-tokens", "12"]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_convert_then_caption(
    dtype: str, checkpoint: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    fast = ["--fast"] if dtype == "int4" else []  # rounds as loading does
    assert main(["convert", str(checkpoint), "--out", str(out), "--dtype", dtype, *fast]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    assert json.loads((out / "config.json").read_text())["quantization"] == dtype
    captions = []
    for model, options in ((out, []), (checkpoint, ["--dtype", dtype])):
        assert main(["caption", pictures[0], "--model", str(model), *options, *TOKENS]) == 0
        captions.append(capsys.readouterr().out)
    wanted = pipeline("image-to-text", str(checkpoint), dtype=dtype)(pictures[0], max_new_tokens=12)
    assert captions == [one_line(wanted[0]["generated_text"]) + "\n"] * 2
    assert main(["caption", pictures[0], "--model", str(out), "--dtype", "float32"]) == 2
    assert f"weights are already {dtype}" in capsys.readouterr().err


def test_the_dtype_of_the_kv_cache_reaches_the_model(
    checkpoint: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("float32", "float16", "int8"):
        assert main(["caption", pictures[0], "--model", str(checkpoint), "--kv-cache-dtype", kind, *TOKENS]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1
        captioner = pipeline("image-to-text", str(checkpoint), kv_cache_dtype=kind)
        assert captioner.model.language_model.kv_cache_dtype == kind
    assert main(["caption", pictures[0], "--model", str(checkpoint), "--kv-cache-dtype", "int4"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("--kv-cache-dtype 'int4' is not supported: use one of float32, float16, int8\n")


def test_an_unsupported_dtype_is_a_usage_error(pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = "dtype 'int3' is not supported: expected one of float32, float16, bfloat16, int8, int4"
    for options, wanted in (
        (["--dtype", "int3"], message),
        (["--dtype", "bfloat16", "--language-backend", "mindspore"], "'bfloat16' needs the CPU kernels"),
    ):
        assert main(["caption", pictures[0], *options]) == 2
        captured = capsys.readouterr()
        assert wanted in captured.err
        assert captured.out == ""


def test_bfloat16_is_a_type_of_every_command(
    checkpoint: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half"
    assert main(["convert", str(checkpoint), "--out", str(out), "--dtype", "bfloat16"]) == 0
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    capsys.readouterr()
    for model in (checkpoint, out):  # conversion rounds norms and biases too
        wanted = pipeline("image-to-text", str(model), dtype="bfloat16")(pictures[0], max_new_tokens=12)
        options = ["--model", str(model), "--dtype", "bfloat16", *TOKENS]
        assert main(["caption", pictures[0], *options]) == 0
        assert capsys.readouterr().out == one_line(wanted[0]["generated_text"]) + "\n"
        rows = tmp_path / f"{model.name}.jsonl"
        assert main(["caption-dataset", pictures[0], "--out", str(rows), *options]) == 0
        assert json.loads(rows.read_text())["caption"] == wanted[0]["generated_text"]
        capsys.readouterr()
