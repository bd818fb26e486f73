"""Run every operator that the model's cells use on MindSpore's device, and compare each with NumPy in float64.

This script has never run on an Ascend; its tests run it on a CPU.

python check_operators.py --dtype bfloat16

Prints one JSON object per line: the operator and its largest error, relative to the largest value. The operators run in
a child process; if one crashes it, a new process runs the rest. The exit status is 1 if any operator failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator

from operator_cases import CASES, is_supported

TIMEOUT = 600  # seconds
DTYPES = ("float16", "bfloat16", "float32")
# Largest relative error that rounding explains: a few units in the last place of the type.
ALLOWED = {"float16": 8 * 2.0**-11, "bfloat16": 8 * 2.0**-8, "float32": 2.0**-12}


def check(name: str, dtype: str) -> dict[str, object]:
    """Run one case and return its report; an operator or a dtype that the device does not have is no failure."""
    import numpy as np

    start = time.perf_counter()
    try:
        case = CASES[name](dtype) if is_supported(dtype) else None
        if case is None:
            return {"status": "not supported"}
        ours, expected = case
        error = None
        if ours.shape == expected.shape:
            error = float(np.abs(ours - expected).max() / np.abs(expected).max())
    except Exception as problem:  # whatever the device reports belongs in the output
        return {"status": "failed", "message": f"{type(problem).__name__}: {problem}"[:2000]}
    right = error is not None and error <= ALLOWED[dtype]
    return {"status": "ok" if right else "wrong", "error": error, "seconds": round(time.perf_counter() - start, 3)}


def results(names: list[str], dtype: str, device: str | None) -> Iterator[dict[str, object]]:
    """Yield the report of each case; if the process dies, report that case and start another process."""
    remaining = list(names)
    while remaining:
        command = [sys.executable, __file__, *remaining, "--dtype", dtype, "--here"]
        command += [] if device is None else ["--device", device]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            out, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        reports = [json.loads(line) for line in out.splitlines() if line.startswith('{"operator"')]
        yield from reports
        remaining = remaining[len(reports) :]
        if remaining:
            yield {"operator": remaining.pop(0), "dtype": dtype, "status": "crashed", "exit": process.returncode}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(CASES)} (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--device", choices=("Ascend", "CPU"), help="default: the one that MindSpore finds")
    parser.add_argument("--here", action="store_true", help="run in this process")
    arguments = parser.parse_args()
    names = arguments.names or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"unknown operator {', '.join(unknown)}: expected some of {', '.join(CASES)}")
    if arguments.here and arguments.device:
        import mindspore as ms

        ms.set_device(arguments.device)
    failed = False
    reports = (
        ({"operator": name, "dtype": arguments.dtype, **check(name, arguments.dtype)} for name in names)
        if arguments.here
        else results(names, arguments.dtype, arguments.device)
    )
    for report in reports:
        print(json.dumps(report), flush=True)
        failed = failed or report["status"] not in ("ok", "not supported")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
