"""Negative controls: kernels with a mistake in their AMX source must fail their tests on the emulated CPU.

python tests/amx/mutations.py FOLDER, where FOLDER was prepared by tests/amx/run.sh. Ends with status 1 if the kernels
without a mistake fail, or if a mistake is not noticed. Needs g++, and minutes of CPU time for each.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = Path("mindone/models/share4v/kernels")
TESTS = "tests/models/share4v/kernels"
SECONDS = 7200  # for all of them: the guest is started once
FLAGS = ("-std=c++17", "-O1", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-DSHARE4V_X86")
AVX512 = ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
KINDS = {"portable": (), "amx": (*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16")}
SETS = "-DSHARE4V_INSTRUCTION_SETS=SET(amx) SET(portable)"
BFLOAT16 = f"{TESTS}/test_bfloat16.py"
INT8 = f"{TESTS}/test_stored_results.py"
# What is wrong, what is replaced by what in matrix_amx.h, the tests that must notice it, and which of them (-k).
MUTATIONS = (
    ("bfloat16: the lower rows are multiplied as the upper ones", "_tile_dpbf16ps(2, 5, 6)", "_tile_dpbf16ps(2, 4, 6)",
     BFLOAT16, "order and amx"),
    ("bfloat16: the second panel is the first", "w.data + w.stride + k * kLanes", "w.data + k * kLanes",
     BFLOAT16, "order and amx"),
    ("bfloat16: columns above 512 begin anew", "c.from(r, p * kLanes), k == 0);", "c.from(r, p * kLanes), true);",
     BFLOAT16, "order and amx"),
    ("bfloat16: sums of few rows are not fetched", "store(buffer_ + r * kLanes, load(c_.row(r)));",
     "store(buffer_ + r * kLanes, zero());", BFLOAT16, "order and amx"),
    ("int8: the fourth tile has the weights of the first panel", "_tile_dpbssd(3, 5, 7)", "_tile_dpbssd(3, 5, 6)",
     INT8, "linear and int8-256"),
    ("int8: a single group at the end is that of the first panel", "w.data + p * w.stride + g", "w.data + g",
     INT8, "linear and int8-256"),
)  # fmt: skip
# Runs in the guest: for each library the tests that it must pass (or, mistaken, fail).
GUEST = """
from pathlib import Path
import shutil, subprocess, sys
options = "-q -o addopts= --strict-markers --import-mode=importlib -p no:cacheprovider --confcutdir={tests}".split()
for number, line in enumerate(Path("/work/cases.txt").read_text().splitlines()):
    library, file, names = line.split("\\t")
    shutil.copy("/work/" + library, "/package/{kernels}/libshare4v.so")
    done = subprocess.run([sys.executable, "-m", "pytest", *options, file, "-k", names], capture_output=True, text=True)
    print("case", number, "status", done.returncode, done.stdout.strip().splitlines()[-1:], flush=True)
"""


def main(folder: Path) -> int:
    """Compile the kernels without a mistake and with each, and test them."""
    work = folder / "mutations"
    return report(run(folder, work, build(work)))


def build(work: Path) -> list[tuple[str, str, str]]:
    """Compile the libraries into `work`; return the name of each with the tests for it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    source = ROOT / KERNELS / "csrc"
    objects = [
        compile_source(source / f"{name}.cpp", work, ()) for name in ("operators", "checks", "memory", "threads")
    ]
    objects += [compile_source(source / "isa.cpp", work, isa_flags(kind), kind) for kind in KINDS]
    link(objects, work / "right.so")
    cases = [("right.so", BFLOAT16, "order and amx"), ("right.so", INT8, "linear and int8-256")]
    text = (source / "matrix_amx.h").read_text(encoding="utf-8")
    for number, (name, before, after, file, tests) in enumerate(MUTATIONS):
        assert text.count(before) == 1, f"{name}: matrix_amx.h has {text.count(before)} times {before}"
        changed = work / "csrc"
        shutil.copytree(source, changed)
        (changed / "matrix_amx.h").write_text(text.replace(before, after), encoding="utf-8")
        mutant = compile_source(changed / "isa.cpp", work, isa_flags("amx"), "mutant")
        link([*objects[:-1], mutant], work / f"{number}.so")
        shutil.rmtree(changed)
        cases.append((f"{number}.so", file, tests))
    return cases


def run(folder: Path, work: Path, cases: list[tuple[str, str, str]]) -> list[int]:
    """Return the statuses of pytest in the guest: 0 if the tests passed, 1 if one failed."""
    (work / "cases.txt").write_text("".join("\t".join(case) + "\n" for case in cases), encoding="utf-8")
    (work / "guest.py").write_text(GUEST.format(tests=TESTS, kernels=KERNELS), encoding="utf-8")
    script = (
        f"cd {ROOT} && . tests/amx/environment.sh && amx_environment {folder} && amx_install {folder}/wheel && "
        f"cp {work}/*.so {work}/cases.txt {work}/guest.py {folder}/job/work && "
        f"amx_run {SECONDS} python3.11 guest.py"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    print(done.stdout, flush=True)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("case ")]
    if done.returncode or len(lines) != len(cases):
        raise SystemExit(f"the guest ended early, with status {done.returncode}: {done.stderr}")
    return [int(line[3]) for line in lines]


def report(statuses: list[int]) -> int:
    """Print which mistakes were noticed."""
    for status in statuses[:2]:
        if status:
            print("without a mistake: FAILED")
            return 1
    for (name, *_), status in zip(MUTATIONS, statuses[2:], strict=True):
        print(f"{name}: {'NOT NOTICED' if status == 0 else 'noticed'}")
    return int(0 in statuses[2:])


def isa_flags(kind: str) -> tuple[str, ...]:
    """Return the flags of isa.cpp for one kind, as in setup.py."""
    return *KINDS[kind], f"-DSHARE4V_ISA={kind}"


def compile_source(source: Path, work: Path, flags: tuple[str, ...], name: str = "") -> Path:
    """Compile one file and return the object."""
    target = work / f"{name or source.stem}.o"
    subprocess.run(["g++", *FLAGS, SETS, *flags, "-c", str(source), "-o", str(target)], check=True)
    return target


def link(objects: list[Path], library: Path) -> None:
    """Link the library of the kernels."""
    subprocess.run(["g++", "-shared", "-s", "-fopenmp", *map(str, objects), "-o", str(library)], check=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
