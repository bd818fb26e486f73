"""What only an aarch64 machine can show: `python benchmarks/arm_report.py > report.txt` on an idle one.

It prints `share4v env`, tests the kernels' stored results with every kind that the CPU supports, and measures each
kind: the time of products and attention next to the arithmetic and bandwidth of the machine, measured in the same run.
It takes about two minutes, needs no checkpoint and no Ascend, and writes nothing but its output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from instructions.workload import CASES
from machine import describe

from mindone.models.share4v.kernels.library import Library, library

ROOT = Path(__file__).parents[1]
REPEATS, SECONDS = 20, 0.3  # a case is repeated at most so often, and for at most so long


def main() -> None:
    """Print the report."""
    print(json.dumps(describe(), indent=1))
    run("share4v env", [sys.executable, "-m", "mindone_share4v", "env"])
    stored = "tests/models/share4v/kernels/test_stored_results.py"
    run("stored results", [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", stored])
    kernels = library()
    for kind in kernels.instruction_sets():
        kernels.select(kind)
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            measure(kernels, kind, threads)


def run(title: str, command: list[str]) -> None:
    """Print what a command prints; its failure is part of the report."""
    print(f"\n## {title}", flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"{done.stdout}exit status {done.returncode}", flush=True)


def measure(kernels: Library, kind: str, threads: int) -> None:
    """Print the least time of each case, and multiply-adds per second."""
    kernels.threads = threads
    peak = kernels.peak_operations() / 2 if kind != "portable" else 0.0
    bandwidth = kernels.read_bandwidth(np.ones(256 << 20, np.uint8))
    print(f"\n## {kind}, {threads} threads: {peak / 1e9:.1f} G float32 multiply-adds/s, {bandwidth / 1e9:.1f} GB/s")
    for name, make in CASES.items():
        multiplies, compute = make()
        begun, least = time.perf_counter(), compute_seconds(compute)
        for _ in range(REPEATS):
            if time.perf_counter() - begun > SECONDS:
                break
            least = min(least, compute_seconds(compute))
        print(f"{name:28} {least * 1e3:9.3f} ms {multiplies / least / 1e9:8.1f} G multiply-adds/s", flush=True)


def compute_seconds(compute: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    begun = time.perf_counter()
    compute()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
