"""Run every operator that the cells are made of on MindSpore's device, each against NumPy in float64.

python check_operators.py --dtype bfloat16

One JSON object a line: what was run, and its largest error as a share of the largest value. All run in a process of
their own, so that one that brings the process down costs none but itself. The exit status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator

from operator_cases import CASES

TIMEOUT = 600
DTYPES = ("float16", "bfloat16", "float32")
# Errors that rounding explains: some units in the last place of the type.
ALLOWED = {"float16": 8 * 2.0**-11, "bfloat16": 8 * 2.0**-8, "float32": 2.0**-12}


def check(name: str, dtype: str) -> dict[str, object]:
    """Run one case and say what came of it; a device without the operator is no failure."""
    import numpy as np

    start = time.perf_counter()
    try:
        case = CASES[name](dtype)
        if case is None:
            return {"status": "not there"}
        ours, wanted = case
        error = float(np.abs(ours - wanted).max() / np.abs(wanted).max()) if ours.shape == wanted.shape else None
    except Exception as problem:  # whatever the device says belongs into the report
        return {"status": "failed", "message": f"{type(problem).__name__}: {problem}"[:2000]}
    right = error is not None and error <= ALLOWED[dtype]
    return {"status": "ok" if right else "wrong", "error": error, "seconds": round(time.perf_counter() - start, 3)}


def results(names: list[str], dtype: str) -> Iterator[dict[str, object]]:
    """Yield each case's report; a process that dies is followed by another for those that are left."""
    left = list(names)
    while left:
        command = [sys.executable, __file__, "--dtype", dtype, "--here", *left]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            out, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        reports = [json.loads(line) for line in out.splitlines() if line.startswith('{"operator"')]
        yield from reports
        left = left[len(reports) :]
        if left:
            yield {"operator": left.pop(0), "dtype": dtype, "status": "crashed", "exit": process.returncode}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(CASES)} (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--here", action="store_true", help="in this process")
    arguments = parser.parse_args()
    names = arguments.names or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"unknown operator {', '.join(unknown)}: expected names of {', '.join(CASES)}")
    failed = False
    reports = (
        ({"operator": name, "dtype": arguments.dtype, **check(name, arguments.dtype)} for name in names)
        if arguments.here
        else results(names, arguments.dtype)
    )
    for report in reports:
        print(json.dumps(report), flush=True)
        failed = failed or report["status"] not in ("ok", "not there")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
