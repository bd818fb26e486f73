"""Counts the instructions of the kernels: aarch64 under qemu with a plug-in, x86-64's AVX2 under valgrind.

python benchmarks/instructions/count.py FOLDER [KIND ...], where FOLDER was prepared by tests/aarch64/run.sh. It needs
Debian's gcc, g++-aarch64-linux-gnu and, for avx2, valgrind. Prints a Markdown table of instructions per multiply-add;
counts do not depend on how busy the machine is, and say nothing about time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Kind -> its CPU for qemu.
KINDS = {"neon": "cortex-a72", "dotprod": "neoverse-n1", "i8mm": "max", "avx2": ""}
Counts = dict[str, int]


def main(folder: Path, *kinds: str) -> None:
    """Count every kind and print the table."""
    work = folder / "instructions"
    work.mkdir(exist_ok=True)
    results: dict[str, dict[str, tuple[int, Counts]]] = {}
    for kind in kinds or KINDS:
        print(f"counting {kind} ...", file=sys.stderr)
        results[kind] = dict(under_valgrind(work, kind) if kind == "avx2" else under_qemu(folder, work, kind))
    print(f"| | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for case in next(iter(results.values())):
        print(f"| {case} | {' | '.join(cell(*result[case]) for result in results.values())} |")


def cell(multiplies: int, counts: Counts) -> str:
    """Return instructions per multiply-add and, of these, loads and multiplications."""
    total = f"{sum(counts.values()) / multiplies:.3f}"
    parts = [f"{counts[name] / multiplies:.3f}" for name in ("multiply", "load") if name in counts]
    return f"{total} ({' + '.join(parts)})" if parts else total


def under_qemu(folder: Path, work: Path, kind: str) -> Iterator[tuple[str, tuple[int, Counts]]]:
    """Yield each case, its multiply-adds and its instructions by what they do."""
    compile_c("gcc", HERE / "plugin.c", work / "plugin.so")
    compile_c("aarch64-linux-gnu-gcc", HERE / "mark.c", work / "mark.so")
    shutil.copy(HERE / "workload.py", folder / "work/workload.py")
    script = (
        f". tests/aarch64/environment.sh; arm_environment {folder}; arm_emulator_with_plugins; "
        f"arm_python {KINDS[kind]} workload.py {work}/mark.so {kind}"
    )
    environment = {**os.environ, "QEMU_PLUGIN": f"{work}/plugin.so"}
    done = subprocess.run(["bash", "-ec", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    marks = [
        {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line)}
        for line in done.stderr.splitlines()
        if line.startswith("instructions")
    ]
    for number, line in enumerate(done.stdout.splitlines()):
        before, after = marks[2 * number : 2 * number + 2]
        case = json.loads(line)
        yield case["case"], (case["multiplies"], {name: after[name] - before[name] for name in after})


def under_valgrind(work: Path, kind: str) -> Iterator[tuple[str, tuple[int, Counts]]]:
    """Yield each case, its multiply-adds and all of its instructions; valgrind does not know AVX-512."""
    compile_c("gcc", HERE / "mark.c", work / "mark_x86.so")
    for old in work.glob("callgrind.*"):
        old.unlink()
    # Without upstream's mindone, which would import MindSpore under valgrind.
    site = work / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(ROOT / "mindone", site / "mindone")
    installed = Path(numpy.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    python = Path(os.path.realpath(sys.executable))
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", f"--callgrind-out-file={work}/callgrind.out", str(python), "-s", "-S"),
            *(str(HERE / "workload.py"), f"{work}/mark_x86.so", kind),
        ],
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    for number, line in enumerate(done.stdout.splitlines()):
        case = json.loads(line)
        text = (work / f"callgrind.out.{2 * number + 2}").read_text()
        yield case["case"], (case["multiplies"], {"all": int(re.findall(r"^totals: (\d+)", text, re.MULTILINE)[0])})


def compile_c(compiler: str, source: Path, library: Path) -> None:
    """Compile one file to a shared library."""
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
