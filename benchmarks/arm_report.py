"""What only an aarch64 machine can show: `python benchmarks/arm_report.py > report.txt` on an idle one.

It prints `share4v env`, tests the kernels' stored results with every kind that the CPU supports, and measures each
kind: the time of products and attention next to the arithmetic and bandwidth of the machine, measured in the same run.
It takes about two minutes and writes nothing but its output. It needs this package (`python -m pip install .` in the
clone) and pytest, and no MindSpore, checkpoint or Ascend.

`--quick` computes small cases once, to see that everything runs: .ci/run does so under qemu, where times say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from machine import describe

try:
    from instructions.workload import CASES, QUICK, Case

    from mindone.models.share4v.kernels.library import KernelsMissingError, Library, library
except ImportError as error:
    raise SystemExit(f"this package is not installed ({error}): python -m pip install . in the clone") from error

ROOT = Path(__file__).parents[1]
# Where commands run: not in the clone, whose sources Python would import instead of the installed package.
TESTS = ROOT / "tests"
# Not pyproject.toml's options, which ask for workers; the conftest.py files above the kernels' need MindSpore.
PYTEST = ["-m", "pytest", "-q", "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider"]
PYTEST += ["--confcutdir=models/share4v/kernels", "models/share4v/kernels/test_stored_results.py"]
REPEATS, SECONDS = 20, 0.3  # a case is repeated at most so often, and for at most so long


def main() -> int:
    """Print the report; the status is 1 if a part of it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases, once")
    parser.add_argument("--python", default=shlex.quote(sys.executable), help="command of Python (default: this one)")
    arguments = parser.parse_args()
    python = shlex.split(arguments.python)
    try:
        kernels = library()
    except (KernelsMissingError, ValueError) as error:
        print(f"there is nothing to report: {error}", file=sys.stderr)
        return 1
    print(json.dumps(describe(), indent=1))
    states = [
        run("share4v env", [*python, "-m", "mindone_share4v", "env"]),
        run("stored results", [*python, *PYTEST]),
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for kind in kernels.instruction_sets():
        kernels.select(kind)
        for threads in sorted({1, cores}):
            measure(kernels, kind, threads, QUICK if arguments.quick else CASES)
    failed = sum(state != 0 for state in states)
    print(f"\n## end\n{failed or 'none'} of the commands above failed")
    return 1 if failed else 0


def run(title: str, command: list[str]) -> int:
    """Print what a command prints, and return its exit status; its failure is part of the report."""
    print(f"\n## {title}", flush=True)
    try:
        done = subprocess.run(
            command, cwd=TESTS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error}", flush=True)
        return 1
    print(f"{done.stdout}exit status {done.returncode}", flush=True)
    return done.returncode


def measure(kernels: Library, kind: str, threads: int, cases: Mapping[str, Callable[[], Case]]) -> None:
    """Print the least time of each case, and multiply-adds per second."""
    kernels.threads = threads
    is_quick = cases is QUICK
    limits = "limits not measured"
    if not is_quick:
        peaks = {dtype: kernels.peak_operations(dtype) / 2e9 for dtype in ("float32", "int8") if kind != "portable"}
        bandwidth = kernels.read_bandwidth(np.ones(256 << 20, np.uint8)) / 1e9
        found = [f"{peak:.1f} G {dtype} multiply-adds/s" for dtype, peak in peaks.items() if peak]
        limits = ", ".join([*found, f"{bandwidth:.1f} GB/s"])
    print(f"\n## {kind}, {threads} threads: {limits}", flush=True)
    for name, make in cases.items():
        multiplies, compute = make()
        begun, least = time.perf_counter(), compute_seconds(compute)
        for _ in range(0 if is_quick else REPEATS):
            if time.perf_counter() - begun > SECONDS:
                break
            least = min(least, compute_seconds(compute))
        print(f"{name:32} {least * 1e3:9.3f} ms {multiplies / least / 1e9:8.1f} G multiply-adds/s", flush=True)


def compute_seconds(compute: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    begun = time.perf_counter()
    compute()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
