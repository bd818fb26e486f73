"""Runs hostile input in a process of its own, with limits of time and memory.

A server process imports what the readers need once and forks a child for each piece of code: a child costs
milliseconds, and one that crashes or hangs takes nothing along. The server never imports MindSpore, whose threads do
not survive a fork; what needs MindSpore is run in a new process by its own test.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PRELOADED = (
    *("numpy", "PIL.Image", "pyarrow.parquet"),
    *("mindone.models.share4v.checkpoint", "mindone.models.share4v.processing.processor"),
    "mindone.pipelines.image_to_text.dataset.readers.reader",
)


@cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )


def run_limited(code: str, *arguments: str, seconds: float = 20, megabytes: int = 600) -> tuple[str, str]:
    """Run code that calls `report(function, ...)` once; return the error's class and message, or ("value", repr).

    `report` and `sys` are defined there; `arguments` are `sys.argv[1:]`. Fails if the process dies by a signal, uses
    more than `seconds` of CPU time or ten times that in all, or has more than `megabytes` of memory in use at its peak.
    The limits of time are generous: they tell an end from no end, not fast from slow.
    """
    server = _server()
    assert server.stdin and server.stdout
    request = {"code": code, "arguments": arguments, "seconds": seconds}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = json.loads(server.stdout.readline())
    assert answer["status"] == 0 and answer["output"], f"ended with status {answer['status']}: {answer['output']}"
    kind, message = json.loads(answer["output"])
    assert answer["megabytes"] <= megabytes, f"{answer['megabytes']} MiB at the peak, expected at most {megabytes}"
    return kind, message


def _without_upstream() -> None:
    """Let `mindone` be this repository's alone, since the upstream package imports MindSpore.

    Where the package is installed, it is the installed one, which has the kernels that were built.
    """
    kernels = "mindone/models/share4v/kernels/libshare4v.so"
    root = next((Path(folder) for folder in sys.path if (Path(folder) / kernels).is_file()), ROOT)
    sys.path.insert(0, str(ROOT / "tests"))
    for name in ("mindone", "mindone.models", "mindone.pipelines"):
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = [str(root / name.replace(".", "/"))]  # type: ignore[attr-defined]


def _run(request: dict[str, Any], pipe: int) -> None:
    """In the child: run the code, write what `report` was given, and end without cleaning up."""
    seconds = int(request["seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the code prints must not be taken for the server's answer
    sys.argv = ["limited", *request["arguments"]]

    def report(function: Callable[..., Any], *arguments: Any) -> None:
        try:
            answer = ("value", repr(function(*arguments))[:500])
        except Exception as error:
            answer = (type(error).__name__, str(error))
        os.write(pipe, json.dumps((answer[0], answer[1][:50_000])).encode())

    try:
        exec(compile(request["code"], "limited", "exec"), {"__name__": "limited", "report": report, "sys": sys})
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        _run(request, writable)
    os.close(writable)
    with selectors.DefaultSelector() as selector:
        selector.register(readable, selectors.EVENT_READ)
        if not selector.select(request["seconds"] * 10):
            os.kill(child, 9)
    output = b""
    while chunk := os.read(readable, 1 << 16):
        output += chunk
    os.close(readable)
    _, status, usage = os.wait4(child, 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "output": output.decode(),
        "megabytes": usage.ru_maxrss // 1024,
    }


def _serve() -> None:
    _without_upstream()
    for module in PRELOADED:  # imported once, before any fork
        import_module(module)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")


if __name__ == "__main__":
    _serve()
