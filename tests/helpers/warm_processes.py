"""Python processes that begin with MindSpore imported, which takes seconds: forked from a server that imported it.

`WarmProcesses(folder, environment)` starts a server and writes two commands, `python` and `share4v`, into `folder`.
With that folder at the front of PATH, whatever runs them gets a process forked from the server, with its own
arguments, working directory, environment, standard streams and inherited descriptors. Signals and the exit status are
passed on, and a command that is killed takes its process with it.

`warm_python()` is such a `python`, of a server that every process which calls it has.

What is decided at import (such as OMP_NUM_THREADS) is that of the server's environment. Nothing of MindSpore but its
import happens in the server, and no thread runs Python code there, so that forking is safe. The same is so after
`import mindnlp`: the threads then are those of OpenBLAS and of pyarrow's jemalloc, which prepare for forks themselves.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MODULES = ("mindspore", "mindone.models")
MAX_DESCRIPTORS = 64  # that a process may inherit
FREE_DESCRIPTORS = 256  # the server's own are from here on, so that processes can have theirs by the same numbers


class WarmProcesses:
    """A server, and the commands in `folder` that it runs.

    Args:
        folder: an existing directory, for the commands and the server's socket.
        environment: of the server.
        modules: what the server imports, in this order.
    """

    def __init__(self, folder: Path, environment: dict[str, str], modules: tuple[str, ...] = MODULES) -> None:
        address = folder / "socket"
        arguments = [sys.executable, str(HERE), "serve", str(address), *modules]
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
def warm_python(*more: str) -> str:
    """The path of a `python` of this process's own server, which runs until this process ends.

    Args:
        more: modules that the server imports besides `MODULES`, after them.
    """
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    processes = WarmProcesses(Path(folder.name), dict(os.environ), (*MODULES, *more))
    atexit.register(folder.cleanup)
    atexit.register(processes.close)
    return str(processes.python)


@contextmanager
def warm_children(*more: str) -> Iterator[None]:
    """Programs that this process runs by `sys.executable` meanwhile begin with `MODULES` and `more` imported.

    Not for tests of the import itself, of what Python does when it starts, or of a child's parent and process group.
    """
    from unittest.mock import patch  # not imported by the many processes that run this file

    python = warm_python(*more)
    with patch.object(sys, "executable", python):
        yield


def serve(address: str, modules: list[str]) -> None:
    """Fork a process for every connection, until standard input is closed."""
    sys.path.pop(0)  # the folder of this file
    output = moved_up(os.dup(1))
    os.dup2(2, 1)  # what imports print is no answer
    for name in modules:
        import_module(name)
    gc.collect()
    gc.freeze()  # a process collects garbage several times as it ends: half a second over all of MindSpore
    with socket.socket(fileno=moved_up(socket.socket(socket.AF_UNIX).detach())) as listener:
        listener.bind(address)
        listener.listen(64)
        os.write(output, b"ready\n")
        os.close(output)
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            reap()
            if 0 in ready:
                return
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    supervise(connection)


def supervise(connection: socket.socket) -> None:
    """Fork the process of a connection and report its exit status; kill it if the connection is closed before."""
    header, received, _, _ = socket.recv_fds(connection, 4, 3 + MAX_DESCRIPTORS)
    descriptors = [moved_up(descriptor) for descriptor in received]
    size = struct.unpack("<I", header)[0]
    task = json.loads(connection.recv(size, socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        connection.close()
        return become(task, descriptors)  # back to the interpreter's end, so that handlers registered with atexit run
    for closed in (*descriptors, 0, 1):
        os.close(closed)
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


def reap() -> None:
    """Wait for the supervisors that have ended, so that CPU time of their processes counts as the server's.

    Who ignored them (SIGCHLD) would hide it from whatever measures the tests.
    """
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def moved_up(descriptor: int) -> int:
    """Replace a descriptor by one that no process expects to inherit."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FREE_DESCRIPTORS)
    os.close(descriptor)
    return moved


def become(task: dict[str, Any], descriptors: list[int]) -> None:
    """Run a Python command line in this process, and end it."""
    for target, descriptor in zip((0, 1, 2, *task["inherited"]), descriptors, strict=True):
        if target > 2 and is_open(target):
            raise OSError(f"descriptor {target} is to be inherited, but an import of the server opened it")
        os.dup2(descriptor, target)
        os.close(descriptor)
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


def is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def inherited_descriptors() -> list[int]:
    """Return the descriptors above the standard streams that a program run by this process would inherit."""
    listed = [int(path.name) for path in Path("/proc/self/fd").iterdir()]  # one is the listing's, closed by now
    return sorted(one for one in listed if one > 2 and is_open(one) and os.get_inheritable(one))


def run(address: str, arguments: list[str]) -> None:
    """Have the server run `python ARGUMENTS`, and end like that process; python itself runs what is no program."""
    if arguments and not arguments[0].startswith("-"):
        command = ["script", *arguments]
    elif len(arguments) > 1 and arguments[0] in ("-c", "-m"):
        command = [arguments[0][1:], *arguments[1:]]
    else:
        os.execv(sys.executable, [sys.executable, *arguments])
    inherited = inherited_descriptors()
    task = json.dumps(
        {"command": command, "folder": str(Path.cwd()), "environment": dict(os.environ), "inherited": inherited}
    ).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [struct.pack("<I", len(task))], [0, 1, 2, *inherited])
        connection.sendall(task)
        for descriptor in inherited:  # whose other ends must see when the process closes them
            os.close(descriptor)
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
        serve(sys.argv[2], sys.argv[3:])
    else:
        run(sys.argv[2], sys.argv[3:])
