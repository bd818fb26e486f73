"""Run every check of this package on a device, each in a process of its own, and print a report to send back.

This script has never run on an Ascend. `--device CPU` is a rehearsal, which the tests run.

python report.py                     # on an Ascend
python report.py --device CPU --only environment device caption

Prints a line per check and writes report.json and report.txt into --out. A check that fails, crashes or takes too long
does not stop the others. Directories, host and user names are removed from the report. The exit status is 1 if a check
failed; "not supported" is no failure.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from report_checks import CHECKS, Settings

HERE = Path(__file__).resolve().parent
MARK = "report-result "
PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/:'\"()\[\],]+/)+")
MESSAGE = 1500  # characters of an error


def private_words() -> list[str]:
    """Return the names of this host and user, longest first; short ones would hit ordinary words."""
    words = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    with suppress(KeyError, OSError):  # a user without a name
        words.add(getpass.getuser())
    return sorted((word for word in words if len(word) > 3), key=len, reverse=True)


def public(value: Any) -> Any:
    """Return a value without directories, host and user names in its texts."""
    if isinstance(value, dict):
        return {name: public(item) for name, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    text = PATH.sub("<dir>/", value)
    for word in private_words():
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "<name>", text)
    return text


def run(name: str, settings: Settings) -> dict[str, Any]:
    """Run a check in a process of its own and return its result, whatever happens there."""
    command = [sys.executable, str(HERE / "report.py"), "--check", name, *settings.flags()]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    limit = CHECKS[name].seconds * settings.patience
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        end(process)
        out, err = process.communicate()
        return {"status": "timed out", "seconds": round(limit, 1), "message": last_lines(err)}
    seconds = round(time.perf_counter() - start, 1)
    found = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
    if not found:
        return {"status": "crashed", "seconds": seconds, "exit": process.returncode, "message": last_lines(err)}
    result: dict[str, Any] = {**json.loads(found[-1]), "seconds": seconds}
    if result["status"] == "failed":
        result["log"] = last_lines(err)
    return result


def end(process: subprocess.Popen[str]) -> None:
    """End a process and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)


def last_lines(text: str) -> str:
    """Return the end of a log."""
    return text[-MESSAGE:].strip()


def check_here(name: str, settings: Settings) -> None:
    """Run a check in this process and print its result for `run`."""
    try:
        result = CHECKS[name].run(settings)
    except Exception as problem:  # whatever a device reports belongs in the report
        result = {"status": "failed", "message": f"{type(problem).__name__}: {str(problem).strip()[:MESSAGE]}"}
    print(MARK + json.dumps(result), flush=True)


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return the report as text."""
    made = []
    for name, result in results.items():
        made.append(f"{result['status']:13} {name:20} {CHECKS[name].title} ({result['seconds']} s)")
        for key, value in result.items():
            if key not in ("status", "seconds"):
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                made += [
                    f"    {key}: {line}" if not number else f"      {line}"
                    for number, line in enumerate(text.splitlines())
                ]
    return made


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=("Ascend", "CPU"), default="Ascend", help="CPU is a rehearsal")
    made.add_argument(
        "--model", default="sharegpt4v-tiny", help="of the speed and memory checks (default: %(default)s)"
    )
    made.add_argument(
        "--dtype",
        choices=("bfloat16", "float16"),
        help="of caption, speed and memory (default: bfloat16; a 910A has none)",
    )
    made.add_argument("--only", nargs="+", metavar="CHECK", choices=CHECKS, help=f"some of {', '.join(CHECKS)}")
    made.add_argument("--out", type=Path, default=Path("ascend-report"), help="directory (default: %(default)s)")
    made.add_argument("--patience", type=float, default=1.0, help="factor for the time limits (default: %(default)s)")
    made.add_argument("--check", choices=CHECKS, help=argparse.SUPPRESS)
    return made


def main() -> int:
    arguments = parser().parse_args()
    settings = Settings(arguments.device, arguments.model, arguments.patience, arguments.dtype)
    if arguments.check:
        check_here(arguments.check, settings)
        return 0
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        print(f"error: --out {arguments.out} cannot be created: {problem.strerror}", file=sys.stderr)
        return 2
    results: dict[str, dict[str, Any]] = {}
    for name in arguments.only or CHECKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = public(run(name, settings))
        print("\n".join(lines({name: results[name]})), flush=True)
    rehearsal = settings.device != "Ascend"
    written = {"device": settings.device, "is_rehearsal": rehearsal, "model": public(settings.model), "checks": results}
    (arguments.out / "report.json").write_text(
        json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    title = "Rehearsal on a CPU: it says nothing about an Ascend." if rehearsal else "Report of a run on an Ascend."
    (arguments.out / "report.txt").write_text("\n".join([title, *lines(results)]) + "\n", encoding="utf-8")
    print(f"{title} Send back {arguments.out / 'report.json'} and {arguments.out / 'report.txt'}.")
    return int(any(result["status"] not in ("ok", "not supported") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
