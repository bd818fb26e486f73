"""Coverage-guided fuzzing of every reader, with the same inputs in every run; fuzz.py tries others, for longer."""

from __future__ import annotations

import os
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
    "zip",
    "csv",
    "jsonl",
    "arrow",
)
RUNS, SECONDS = 1000, 20  # images and archives take some milliseconds each; the seconds only bound a busy machine


def test_every_target_is_run() -> None:
    done = subprocess.run([sys.executable, str(FUZZ), "--help"], capture_output=True, text=True, check=True)
    assert "{" + ",".join(TARGETS) + "}" in done.stdout.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_raises_anything_but_the_readers_own_errors(target: str, tmp_path: Path) -> None:
    bounds = ["--seed", "1", "--runs", str(RUNS), "--seconds", str(SECONDS)]
    command = [sys.executable, str(FUZZ), target, *bounds, "--corpus", str(tmp_path / "corpus")]
    fixed = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=fixed)
    exception = (done.stdout + done.stderr).partition("=== Uncaught Python exception")[2]
    assert done.returncode == 0, exception[:3000] or (done.stdout + done.stderr)[-3000:]
    assert "stat::number_of_executed_units" in done.stderr
