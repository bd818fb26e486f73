"""Runs the code blocks of one page, in order, in the current folder: `python run_page.py PAGE`.

Standard input has the blocks as JSON. Python blocks share one namespace; every shell block runs in a new shell.
"""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


def run_python(text: str, place: str, line: int, namespace: dict[str, Any]) -> str:
    """Run a Python block; return its traceback, or "" if it succeeds."""
    code = "\n" * (line - 1) + text  # so that tracebacks have the line numbers of the page
    try:
        exec(compile(code, place, "exec"), namespace)
    except BaseException:
        return traceback.format_exc()
    return ""


def run_shell(text: str) -> tuple[int, str, str]:
    """Run a script in a new shell that stops at the first error; return status, output and errors."""
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


def run_session(text: str) -> str:
    """Run a console block: commands after `$ `, each followed by its output, in which `...` matches anything.

    Where the block shows messages of `share4v`, standard error is a part of the output; where it shows an error of it,
    the command must fail.
    """
    _, *turns = f"\n{text}".split("\n$ ")
    if not turns:
        return "the console block has no line that starts with `$ `"
    for turn in turns:
        command, _, wanted = turn.partition("\n")
        while command.endswith("\\"):
            more, _, wanted = wanted.partition("\n")
            command += f"\n{more.removeprefix('>')}"
        status, output, errors = run_shell(command)
        if bool(status) != ("share4v: error: " in wanted):
            return f"{command}\nexited with status {status}\n{errors}"
        if "share4v: " in wanted:
            output += errors
        if not doctest.OutputChecker().check_output(wanted.strip() + "\n", output.strip() + "\n", doctest.ELLIPSIS):
            return f"{command}\nprinted\n{output}\nbut expected was\n{wanted}"
    return ""


def main() -> int:
    page = sys.argv[1]
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for block in json.load(sys.stdin):
        where = f"{page}, line {block['line']}"
        if block["title"]:
            Path(block["title"]).parent.mkdir(parents=True, exist_ok=True)
            Path(block["title"]).write_text(block["text"], encoding="utf-8")
            continue
        if block["language"] == "python":
            problem = run_python(block["text"], page, block["line"], namespace)
        elif block["language"] == "console":
            problem = run_session(block["text"])
        else:
            status, output, errors = run_shell(block["text"])
            problem = f"status {status}\n{output}{errors}" if status else ""
        if problem:
            sys.stderr.write(f"{where}:\n{problem}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.path.insert(0, "")  # a page can import the files that it writes
    sys.exit(main())
