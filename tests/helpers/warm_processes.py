"""Python processes that begin with MindSpore imported, which takes seconds: forked from a server that imported it.

`WarmProcesses(folder, environment)` starts a server and writes two commands, `python` and `share4v`, into `folder`.
With that folder at the front of PATH, whatever runs them gets a process forked from the server, with its own
arguments, working directory, environment and standard streams. Signals and the exit status are passed on, and a command
that is killed takes its process with it.

`warm_python()` is such a `python`, of a server that every process which calls it has.

What is decided at import (such as OMP_NUM_THREADS) is that of the server's environment. Nothing of MindSpore but its
import happens in the server, and no thread runs Python code there, so that forking is safe.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class WarmProcesses:
    """A server, and the commands in `folder` that it runs.

    Args:
        folder: an existing directory, for the commands and the server's socket.
        environment: of the server.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        address = folder / "socket"
        arguments = [sys.executable, str(HERE), "serve", str(address)]
        self._server = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=folder
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"
        self.python = folder / "python"
        real_command = Path(sys.executable).with_name("share4v")
        for path, script in ((self.python, ""), (folder / "share4v", str(real_command))):
            client = f'"{sys.executable}" -IS "{HERE}" run "{address}"'
            path.write_text(f'#!/bin/sh\nexec {client} {script} "$@"\n', encoding="utf-8")
            path.chmod(0o755)

    def close(self) -> None:
        """End the server; processes that it forked continue."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


@cache
def warm_python() -> str:
    """The path of a `python` of this process's own server, which runs until this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    processes = WarmProcesses(Path(folder.name), dict(os.environ))
    atexit.register(folder.cleanup)
    atexit.register(processes.close)
    return str(processes.python)


def serve(address: str) -> None:
    """Fork a process for every connection, until standard input is closed."""
    import mindspore  # noqa: F401

    import mindone.models  # noqa: F401

    sys.path.pop(0)  # the folder of this file
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are not waited for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        os.write(1, b"ready\n")
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                return
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    supervise(connection)


def supervise(connection: socket.socket) -> None:
    """Fork the process of a connection and report its exit status; kill it if the connection is closed before."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, streams, _, _ = socket.recv_fds(connection, 4, 3)
    size = struct.unpack("<I", header)[0]
    task = json.loads(connection.recv(size, socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        connection.close()
        return become(task, streams)  # back to the interpreter's end, so that handlers registered with atexit run
    for stream in (*streams, 0, 1):
        os.close(stream)
    connection.sendall(struct.pack("<I", child))
    descriptor = os.pidfd_open(child)
    while descriptor not in (ready := select.select([descriptor, connection], [], [])[0]):
        if connection in ready and not connection.recv(1):
            os.kill(child, signal.SIGKILL)
            break
    _, status = os.waitpid(child, 0)
    try:
        connection.sendall(struct.pack("<i", os.waitstatus_to_exitcode(status)))
    finally:
        os._exit(0)


def become(task: dict[str, Any], streams: list[int]) -> None:
    """Run a Python command line in this process, and end it."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(task["folder"])
    os.environ.clear()
    os.environ.update(task["environment"])
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    kind, target, *rest = task["command"]
    sys.argv = [target if kind == "script" else f"-{kind}", *rest]
    sys.path[:0] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path.insert(0, str(Path(target).resolve().parent) if kind == "script" else "")
    if kind == "script":
        runpy.run_path(target, run_name="__main__")
    elif kind == "m":
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        exec(compile(target, "<string>", "exec"), {"__name__": "__main__"})
    sys.exit()


def run(address: str, arguments: list[str]) -> None:
    """Have the server run `python ARGUMENTS`, and end like that process; python itself runs what is no program."""
    if arguments and not arguments[0].startswith("-"):
        command = ["script", *arguments]
    elif len(arguments) > 1 and arguments[0] in ("-c", "-m"):
        command = [arguments[0][1:], *arguments[1:]]
    else:
        os.execv(sys.executable, [sys.executable, *arguments])
    task = json.dumps({"command": command, "folder": str(Path.cwd()), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [struct.pack("<I", len(task))], [0, 1, 2])
        connection.sendall(task)
        pid = struct.unpack("<I", connection.recv(4, socket.MSG_WAITALL))[0]
        for number in FORWARDED:
            signal.signal(number, lambda received, _: os.kill(pid, received))
        status = struct.unpack("<i", connection.recv(4, socket.MSG_WAITALL))[0]
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        run(sys.argv[2], sys.argv[3:])
