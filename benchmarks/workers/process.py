"""A contender's process as compare.py sees it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")

MEANINGS = {  # of exit statuses; minus a number is a signal
    -4: "an illegal instruction; GCC 12.2 miscompiles llama.cpp's AMX tiles: see workers/llama_cpp_worker.py",
    -9: "killed, as the system does when memory runs out",
}
UNKNOWN = "its own message is above; --torch-python and --llama-python name interpreters that have the libraries"


class WorkerError(RuntimeError):
    """A worker that did not start, ended, or could not do what it was asked."""


@dataclass(frozen=True)
class Contender:
    """A library and the type of its weights."""

    library: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.library}:{self.dtype}"


class Worker:
    """A running contender; a context manager, so that it never outlives its turn.

    Args:
        contender: what it runs.
        module: the worker's module, as `workers.torch_worker`.
        python: the interpreter that has the contender's library.
        shape: a name of `shapes.SHAPES`.
        threads: how many threads its kernels may use.
        directory: where files of weights are kept.

    Raises:
        WorkerError: the process ended before it was ready; its own message is on the standard error.
    """

    def __init__(
        self, contender: Contender, module: str, python: str, shape: str, threads: int, directory: Path
    ) -> None:
        self.contender = contender
        arguments = {"shape": shape, "dtype": contender.dtype, "threads": threads, "directory": directory}
        self._process = subprocess.Popen(
            [python, "-m", module, *(f"--{name}={value}" for name, value in arguments.items())],
            cwd=BENCHMARKS,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.facts: dict[str, Any] = self._read()["ready"]
        except BaseException:
            self.close()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, float]:
        """The reply to one request.

        Raises:
            WorkerError: the worker ended, or answered with an error.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the reading below tells
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        reply = self._read()
        self.facts["peak_memory_gib"] = round(reply.pop("peak_memory_gib"), 2)
        return reply

    def cpu_seconds(self) -> float | None:
        """The CPU time that its threads have used so far; None where there is no /proc."""
        path = Path(f"/proc/{self._process.pid}/stat")
        if not path.exists():
            return None
        fields = path.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS  # utime, stime

    def close(self) -> None:
        """End the process; its input's end asks it to, and after half a minute it is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise WorkerError(f"{self.contender} ended with status {status} ({MEANINGS.get(status, UNKNOWN)})")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.contender}: {reply['error']}")
        return reply
