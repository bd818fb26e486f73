"""A few seconds of coverage-guided fuzzing for every reader; fuzz.py runs longer by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
TARGETS = (
    "pickle",
    "torch",
    "safetensors",
    "ckpt",
    "gguf",
    "config",
    "tokenizer",
    "image",
    "tar",
    "csv",
    "jsonl",
    "arrow",
)
SECONDS = 3


def test_every_target_is_run() -> None:
    done = subprocess.run([sys.executable, str(FUZZ), "--help"], capture_output=True, text=True, check=True)
    assert "{" + ",".join(TARGETS) + "}" in done.stdout.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_raises_anything_but_the_readers_own_errors(target: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZ), target, "--seconds", str(SECONDS), "--corpus", str(tmp_path / "corpus")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "stat::number_of_executed_units" in done.stderr
