"""share4v models, env and completion; the status line; and what happens where MindSpore is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.terminal import SHARE4V

from mindone.models.share4v import cpu_cores
from mindone.models.share4v.cpu_cores import Core
from mindone_share4v.arguments import COMMANDS
from mindone_share4v.cli import main
from mindone_share4v.commands import completion
from mindone_share4v.commands.env import describe
from mindone_share4v.status_line import StatusLine


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "huggingface"))
    assert main(["models"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split("  ") for line in out.splitlines()]
    assert rows[0][0].strip() == "NAME" and rows[1][0].strip() == "sharegpt4v-tiny" and "in the package" in out
    assert "about 13.5 GB" in out and "Lin-Chen/ShareGPT4V-7B on the Hugging Face hub" in out
    assert f"downloads are stored in {tmp_path / 'cache'}" in err
    assert main(["models", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[1]["name"] == "sharegpt4v-7b" and records[1]["status"] == "not cached"
    folder = tmp_path / "cache" / "models" / "sharegpt4v-7b"
    folder.mkdir(parents=True)
    (folder / "part").write_bytes(bytes(2_500_000))
    assert main(["models", "--remove", "sharegpt4v-7b"]) == 0
    assert capsys.readouterr().out == "removed sharegpt4v-7b: 2.5 MB\n" and not folder.exists()
    assert main(["models", "--remove", "sharegpt4v-7b"]) == 2
    assert "share4v: error: sharegpt4v-7b is not in the download cache" in capsys.readouterr().err


def test_env(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pa55@proxy:3128")
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    monkeypatch.setenv("SHARE4V_MIRROR", "http://mirror\x1b[31m/?token=abc")
    assert main(["env"]) == 0
    out, err = capsys.readouterr()
    assert "mindspore: 2." in out and "built: yes" in out and "cpu features:" in out and "bug report" in err
    assert "HTTPS_PROXY: http://proxy:3128" in out and "HF_TOKEN: (set)" in out
    assert not any(secret in out for secret in ("pa55", "s3cret", "abc", "\x1b"))
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["system", "packages", "kernels", "environment"]


def test_env_tells_cores_from_hardware_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with two hardware threads a core, it called each of them a core."""
    cores = [Core(node=cpu // 4, cpus=(2 * cpu, 2 * cpu + 1)) for cpu in range(8)]
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {cpu for core in cores for cpu in core.cpus})
    monkeypatch.setattr(cpu_cores, "usable_cores", lambda: cores)
    monkeypatch.setattr(cpu_cores, "cpu_quota", lambda: 2.5)
    found = describe()
    assert found["system"]["cpu"].endswith(", 16 hardware threads for this process")
    assert found["kernels"]["cores"] == "4 on NUMA node 0, 4 on NUMA node 1"
    assert found["kernels"]["limit of the cgroups"] == "the time of 2.5 CPUs"


def test_env_says_why_the_kernels_were_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindone.models.share4v.kernels import library

    monkeypatch.setattr(library, "LIBRARY", tmp_path / "libshare4v.so")
    monkeypatch.setattr(library, "BUILD_ERROR", tmp_path / "build_error.txt")
    library.library.cache_clear()
    try:
        assert "libshare4v.so is missing" in describe()["kernels"]["built"]
        (tmp_path / "build_error.txt").write_text("command 'c++' failed:\n No such file or directory\n")
        assert describe()["kernels"]["built"].startswith(
            "no: the CPU kernels were not built (command 'c++' failed: No such file or directory): install a C++ comp"
        )
    finally:
        library.library.cache_clear()


@pytest.mark.parametrize("module", ["mindspore", "mindone"])
def test_an_installation_in_which_an_import_fails(module: str, tmp_path: Path) -> None:
    """Every command reports it in one line, and `env` still works."""
    (tmp_path / f"{module}.py").write_text("raise ImportError('libfoo.so.1: cannot open \\x1b shared object file')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}

    def share4v(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*SHARE4V, *arguments], capture_output=True, text=True, env=environment, timeout=300)

    done = share4v("caption", "photo.jpg")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr == (
        "share4v: error: libfoo.so.1: cannot open \\x1b shared object file; `share4v env` lists what is installed\n"
    )
    done = share4v("env")
    assert done.returncode == 0, done.stderr
    assert "mindone cannot be imported (ImportError: libfoo.so.1" in done.stdout and "mindspore: 2." in done.stdout


# Completion


def complete(script: Path, *words: str) -> list[str]:
    """Return what bash completes for the last word."""
    program = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _share4v; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-c", program, "bash", str(script), "share4v", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    found = completion.commands()
    for name, write in completion.SHELLS.items():
        (folder / name).write_text(write(found))
    return folder


def test_bash_completes(scripts: Path) -> None:
    bash = scripts / "bash"
    assert set(complete(bash, "")) == {*COMMANDS, "--help", "--version"}
    assert complete(bash, "cap") == ["caption", "caption-dataset"]
    assert complete(bash, "caption-dataset", "--ex") == ["--exclude", "--existing"]
    assert complete(bash, "caption-dataset", "photos", "--existing", "s") == ["skip"]
    assert complete(bash, "caption", "--dtype", "") == ["float32", "float16", "bfloat16", "int8", "int4"]
    assert complete(bash, "caption", "--dtype", "=", "int") == ["int8", "int4"]  # as bash splits --dtype=int
    assert complete(bash, "caption", "--style", "one") == ["one-sentence"]
    assert complete(bash, "chat", "photo.jpg", "--model", "sharegpt4v-1") == ["sharegpt4v-13b"]
    assert complete(bash, "completion", "") == ["bash", "zsh", "fish"]
    assert complete(bash, "models", "--remove", "sharegpt4v-13b-") == ["sharegpt4v-13b-vision-tower"]
    assert complete(bash, "caption", "pho") == []  # bash completes paths
    assert complete(bash, "caption", "a.png", "--out") == []


def test_bash_completes_paths_with_its_default(scripts: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", f'source "{scripts / "bash"}"; complete -p share4v'], capture_output=True, text=True
    )
    assert done.stdout == "complete -o bashdefault -o default -F _share4v share4v\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_every_command_and_option(shell: str, scripts: Path) -> None:
    text = (scripts / shell).read_text()
    for command in completion.commands():
        assert command.name in text
        for option in command.options:
            for flag in option.flags:
                assert (f"-l {flag[2:]} " if shell == "fish" and flag.startswith("--") else flag[2:]) in text
    if shutil.which(shell):  # bash is on every machine that runs the tests; the others are not
        done = subprocess.run([shell, "-n", str(scripts / shell)], capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str], scripts: Path) -> None:
    assert main(["completion", "fish"]) == 0
    assert capsys.readouterr().out == (scripts / "fish").read_text()
    with pytest.raises(SystemExit):
        main(["completion", "csh"])
    assert "SHELL must be one of bash, zsh, fish, got 'csh'" in capsys.readouterr().err


# The status line


class Stream:
    def __init__(self, is_terminal: bool) -> None:
        self.text, self.is_terminal = "", is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...


def test_the_status_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    line = StatusLine()
    line.clear()
    assert stream.text == ""
    line.show("loading \x1b]0;x\x07" + "m" * 100)
    assert "\x1b]" not in stream.text and "\x07" not in stream.text and len(stream.text) < 100
    line.clear()
    line.clear()
    assert stream.text.endswith("\r\x1b[K") and stream.text.count("\r\x1b[K") == 2
    stream.is_terminal = False
    line.show("not shown")
    assert "not shown" not in stream.text
