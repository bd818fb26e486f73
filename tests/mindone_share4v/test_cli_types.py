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


@pytest.mark.parametrize(
    "dtype, message",
    [
        ("int3", "dtype 'int3' is not supported: expected one of float32, float16, bfloat16, int8, int4"),
        (
            "bfloat16",
            "dtype 'bfloat16' is not supported on a CPU, only on Ascend: use 'float32'",
        ),
    ],
)
def test_an_unsupported_dtype_is_a_usage_error(
    dtype: str, message: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", pictures[0], "--dtype", dtype]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
