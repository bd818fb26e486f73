"""Where there are no kernels, or others than the best are asked for: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers.paths import SCENE
from helpers.warm_processes import warm_python

from mindone.models.share4v import Share4V
from mindone.models.share4v.kernels.library import library

DEADLINE = 300.0
# Runs a program as if the kernels had not been built.
WITHOUT = """
from pathlib import Path
from mindone.models.share4v.kernels import library
library.LIBRARY = Path("/nowhere/libshare4v.so")
"""
LOAD = """
from mindone.models.share4v import Share4V
for number in range(2):
    model = Share4V.from_pretrained("sharegpt4v-tiny", dtype={dtype!r})
print(type(model.language_model).__name__, model.generate([[1, 300, 301, 302]], max_new_tokens=6))
"""
COMMANDS = """
from mindone_share4v.cli import main
print([main(arguments) for arguments in {commands!r}])
"""
KIND = """
from mindone.models.share4v.kernels.library import library
print(library().instruction_set)
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [warm_python(), "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, "GLOG_v": "3", **environment},
    )


def test_floats_run_on_cells_and_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    done = run(WITHOUT + LOAD.format(dtype="float32"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the CPU kernels were not built") == 1
    assert "install a C++ compiler" in done.stderr
    model = Share4V.from_pretrained("sharegpt4v-tiny", dtype="float32")  # here, with the kernels
    assert "kernels" not in caplog.text
    cells, answer = done.stdout.split(" ", 1)
    assert (cells, type(model.language_model).__name__) == ("LlamaForCausalLM", "KernelLlamaForCausalLM")
    assert answer.strip() == str(model.generate([[1, 300, 301, 302]], max_new_tokens=6)) and answer.count(",") > 2


def test_integers_say_what_is_missing(tmp_path: Path) -> None:
    done = run(WITHOUT + LOAD.format(dtype="int4"))
    assert done.returncode == 1
    assert "KernelsMissingError: the CPU kernels were not built (libshare4v.so is missing): install" in done.stderr
    out = tmp_path / "out"
    commands = [
        ["caption", str(SCENE), "--dtype", "int4"],
        ["convert", "sharegpt4v-tiny", "--out", str(out), "--dtype", "int4"],
    ]
    done = run(WITHOUT + COMMANDS.format(commands=commands))
    assert (done.returncode, done.stdout) == (0, "[2, 2]\n")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("share4v: error: the CPU kernels were not built") for line in lines)
    assert not out.exists()


def test_a_library_that_does_not_load_is_told(tmp_path: Path) -> None:
    (tmp_path / "libshare4v.so").write_bytes(b"no library")
    done = run(WITHOUT.replace("/nowhere", str(tmp_path)) + LOAD.format(dtype="float16"))
    assert done.returncode == 0 and done.stdout.startswith("LlamaForCausalLM ")
    assert done.stderr.count("the CPU kernels cannot be loaded") == 1


@pytest.mark.parametrize("kind", library().instruction_sets())
def test_the_environment_chooses_the_kernels(kind: str) -> None:
    done = run(KIND, SHARE4V_KERNELS=kind)
    assert (done.returncode, done.stdout.strip()) == (0, kind), done.stderr


def test_the_best_kernels_are_the_default_and_portable_ones_run_everywhere() -> None:
    assert run(KIND, SHARE4V_KERNELS="").stdout.strip() == library().instruction_sets()[0]
    assert library().instruction_sets()[-1] == "portable"
    done = run(LOAD.format(dtype="int4"), SHARE4V_KERNELS="portable")
    assert done.returncode == 0 and done.stdout.startswith("KernelLlamaForCausalLM [["), done.stderr


def test_kernels_that_do_not_run_here_are_refused_with_those_that_do() -> None:
    done = run(LOAD.format(dtype="float32"), SHARE4V_KERNELS="sse9")
    assert done.returncode == 1
    supported = ", ".join(library().instruction_sets())
    assert f"ValueError: kernels for 'sse9' are not supported on this machine: use one of {supported}" in done.stderr
