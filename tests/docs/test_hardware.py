"""The ten commands of docs/hardware.md: what they call is there and takes the flags that they give."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from helpers.pages.document import ROOT, blocks_of
from helpers.warm_processes import warm_python

from mindone_share4v.cli import build_parser

PAGE = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
PART = PAGE.split("## Verify it on a card")[1]
COMMANDS = [shlex.split(block.text.replace("\\\n", " ")) for block in blocks_of(PART)]


def flags_of(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("-")]


def check_flags(command: list[str], words: list[str]) -> str:
    """Check that a program has the flags among `words`, and return its help."""
    command = [warm_python(), *command, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    known = re.findall(r"--[\w-]+", done.stdout)
    assert [flag for flag in flags_of(words) if flag not in known] == []
    return done.stdout


def test_there_are_ten_and_the_page_begins_with_what_was_never_done() -> None:
    assert len(COMMANDS) == 10
    assert PAGE.splitlines()[2].startswith("**This package has never run on an Ascend.**")


@pytest.mark.parametrize("words", COMMANDS, ids=[f"command-{number}" for number in range(1, 11)])
def test_a_command_is_one_that_is_there(words: list[str]) -> None:
    if words[:3] == ["python", "-m", "pip"]:
        assert words[3:] == ["install", ".[test]"]
    elif words[:2] == ["python", "-c"]:
        compile(words[2], "command", "exec")
    elif words[:3] == ["python", "-m", "pytest"]:
        folder = ROOT / words[-1]
        assert len(list(folder.glob("test_*.py"))) >= 2
    elif words[0] == "share4v":
        parsed = build_parser().parse_args(words[1:])
        assert parsed.dtype == "bfloat16"
    elif words[0] == "msrun":
        program = words.index("python")  # msrun starts it as it stands
        check_flags(["-m", "mindspore.parallel.cluster.run"], words[1:program])
        assert words[program + 1 : program + 3] == ["-m", "mindone_share4v"]
        assert build_parser().parse_args(words[program + 3 :]).dtype == "bfloat16"
    else:
        assert words[0] == "python" and Path(ROOT / words[1]).is_file()
        shown = check_flags([words[1]], words[2:])
        if "check_operators" in words[1]:
            names = re.search(r"which to run: (.*?) \(default", shown, re.DOTALL)
            assert names and f"All {len(names[1].split(','))} lines" in PAGE
