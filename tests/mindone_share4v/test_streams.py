"""Standard streams that are closed or full, and users without a home directory: messages, never tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARE4V = f"{sys.executable} -m mindone_share4v"
COMMANDS = ["--help", "--version", "caption-dataset --list-styles"]


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("target", [">/dev/full", ">&-", "<&- >&-"])
def test_output_that_cannot_be_written(command: str, target: str) -> None:
    done = shell(f"{SHARE4V} {command} {target}")
    assert done.returncode == 1
    assert done.stderr.startswith("share4v: error: cannot write to standard output: ") and done.stderr.count("\n") == 1


def test_closed_standard_error_does_not_print_errors_as_results() -> None:
    done = shell(f"{SHARE4V} caption-dataset 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_closed_stream_does_not_give_its_descriptor_to_another_file(tmp_path: Path) -> None:
    """Without a replacement, the first file that is opened becomes descriptor 1, and gets what libraries print."""
    program = (
        "from mindone_share4v.cli import open_missing_streams; open_missing_streams()\n"
        f"print(open({str(tmp_path / 'file')!r}, 'w').fileno(), file=__import__('sys').stderr)"
    )
    done = subprocess.run(["sh", "-c", f'{sys.executable} -c "$0" >&-', program], capture_output=True, text=True)
    assert int(done.stderr) > 2


@pytest.mark.parametrize("model", ["~/models/7b", "Lin-Chen/ShareGPT4V-7B"])
def test_a_user_without_a_home_directory(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mindone.models.share4v.checkpoint import Checkpoint

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("SHARE4V_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(FileNotFoundError, match="this user has no home directory: set HOME"):
        Checkpoint.open(model)
    assert Checkpoint.open("sharegpt4v-tiny").format == "own"  # needs no home
