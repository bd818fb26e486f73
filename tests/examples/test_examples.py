"""The example scripts are short, use only the public interface, and run."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest
from helpers.paths import EXAMPLES
from helpers.warm_processes import warm_python

from mindone.models.share4v import Share4V, Share4VProcessor

SCRIPTS = ("run_share4v.py", "convert_weights.py")
TIMEOUT = 300


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=TIMEOUT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_import_only_public_names(name: str) -> None:
    source = (EXAMPLES / name).read_text()
    assert len(source.splitlines()) < 60
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("mindone")]
    assert ours
    for node in ours:
        assert not any(part.startswith("_") for part in (node.module or "").split("."))
        assert not any(alias.name.startswith("_") for alias in node.names)


def test_run_and_convert(checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    target = tmp_path / "converted"
    out = run(warm_python(), EXAMPLES / "convert_weights.py", "--source", checkpoint, "--target", target, cwd=tmp_path)
    assert out.strip() == str(target)
    model, processor = Share4V.from_pretrained(target), Share4VProcessor.from_pretrained(target)
    inputs = processor(images=pictures[:2], text="Why?", conversation="share4v_v1")
    expected = processor.batch_decode(model.generate(**inputs, max_new_tokens=8))[0]
    flags = ["--query", "Why?", "--conv-mode", "share4v_v1", "--max_new_tokens", "8"]
    out = run(
        warm_python(),
        EXAMPLES / "run_share4v.py",
        *("--model-path", target, "--image-file", *pictures[:2], *flags),
        cwd=tmp_path,
    )
    assert out.strip() == expected


def test_the_shell_script(checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    script = EXAMPLES / "run.sh"
    assert os.access(script, os.X_OK)
    environment = {"MODEL": str(checkpoint), "PYTHON": warm_python()}
    assert run(script, pictures[0], "What is this?", cwd=tmp_path, **environment).strip()
    done = subprocess.run([str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=TIMEOUT)
    assert done.returncode != 0 and "usage" in done.stderr
