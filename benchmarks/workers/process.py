"""A worker process, as seen by compare.py."""

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

MEANINGS = {  # of exit statuses; a negative number is a signal
    -4: "an illegal instruction; GCC 12.2 miscompiles llama.cpp's AMX tiles: see workers/llama_cpp_worker.py",
    -9: "killed, probably by the system because memory ran out",
}
UNKNOWN = "see its message above; set --torch-python or --llama-python to an interpreter that has the library"


class WorkerError(RuntimeError):
    """A worker did not start, ended, or failed to do a request."""


@dataclass(frozen=True)
class Contender:
    """A library and the type of its weights."""

    library: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.library}:{self.dtype}"


class Worker:
    """A running contender; a context manager, which ends the process on exit.

    Args:
        contender: library and dtype.
        module: the worker's module, as `workers.torch_worker`.
        python: interpreter that has the contender's library.
        shape: a name of `shapes.SHAPES`.
        threads: number of threads for its kernels.
        directory: where to store weights.

    Raises:
        WorkerError: the process ended before it was ready; its message is on standard error.
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
        """Send a request and return the reply.

        Raises:
            WorkerError: the worker ended, or answered with an error.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then reading the reply reports it
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        reply = self._read()
        self.facts["peak_memory_gib"] = round(reply.pop("peak_memory_gib"), 2)
        return reply

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that its threads have used so far, or None if the system has no /proc."""
        path = Path(f"/proc/{self._process.pid}/stat")
        if not path.exists():
            return None
        fields = path.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS  # utime, stime

    def close(self) -> None:
        """End the process: close its input, and kill it if it does not exit within 30 seconds."""
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
