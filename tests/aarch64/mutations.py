"""Negative controls: kernels for aarch64 with a mistake in their source must fail the stored results.

python tests/aarch64/mutations.py FOLDER, where FOLDER was prepared by tests/aarch64/run.sh. Ends with status 1 if the
kernels without a mistake fail, or if a mistake is not noticed. Takes about half a minute of CPU time for each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = Path("mindone/models/share4v/kernels")
FLAGS = ("-std=c++17", "-O2", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-DSHARE4V_AARCH64")
NEON = ("-DSHARE4V_NEON", "-fno-schedule-insns")
KINDS = {
    "i8mm": (*NEON, "-march=armv8.2-a+dotprod+i8mm"),
    "dotprod": (*NEON, "-march=armv8.2-a+dotprod"),
    "neon": NEON,
    "portable": (),
}
FLAGS += (f"-DSHARE4V_INSTRUCTION_SETS={' '.join(f'SET({kind})' for kind in KINDS)}",)
# What is wrong, of which kind, in which file, what is replaced by what, and the case that must notice it.
MUTATIONS = (
    ("lanes are exchanged", "dotprod", "matrix_neon.h", '"i"(kQuad % 4)', '"i"(3 - kQuad % 4)', "linear int8"),
    ("rows of a block are exchanged", "i8mm", "product.h", "block.values + place * kInputItem",
     "block.values + (place + 1) % kInputRows * kInputItem", "linear int8-256"),
    ("scales of two rows are exchanged", "i8mm", "matrix_i8mm.h", "i % 2 ? vzip2q_f32(four, four)",
     "i % 2 ? vzip1q_f32(four, four)", "linear int8"),
    ("scales of two groups are exchanged", "dotprod", "matrix_neon.h", "x.scales + (begin >> x.shift) * kInputRows",
     "x.scales + ((begin ^ 1) >> x.shift) * kInputRows", "linear int8"),
    ("outputs of a row are exchanged", "i8mm", "matrix_i8mm.h", "vzip2q_f64(two[0], two[1])",
     "vzip2q_f64(two[1], two[0])", "linear int8"),
    ("columns above 2048 begin anew", "i8mm", "matrix_i8mm.h", "outputs.read(rows, to);", "outputs.clear();",
     "linear int8"),
    ("quads are out of order", "dotprod", "matrix_neon.h", "add_int8_quad<1, R, P>(at", "add_int8_quad<2, R, P>(at",
     "linear int8"),
    ("codes are not limited to 4 bits", "dotprod", "pack.h",
     "store_int8(out + i, min(set1(high), max(set1(low), round(mul(load(w + i), inverse)))));",
     "store_int8(out + i, round(mul(load(w + i), inverse)));", "linear int4"),
    ("a sum exceeds 16 bits", "dotprod", "matrix_neon.h", "vdupq_n_s32(-8 * x.sums[r * x.group_stride + g])",
     "vdupq_n_s32(0)", "linear int4-256"),
    ("products exceed 16 bits", "neon", "matrix_neon.h", "vmlal_s8(products, vget_low_s8(second), vget_low_s8(y))",
     "vshlq_n_s16(vmlal_s8(products, vget_low_s8(second), vget_low_s8(y)), 1)", "linear int8"),
    ("two outputs are exchanged", "i8mm", "matrix_i8mm.h", "vzip1q_u32(even[v], odd[v])", "vzip2q_u32(even[v], odd[v])",
     "linear int8"),
    ("a multiply-add rounds twice", "dotprod", "lanes_neon.h", "{ return vfmaq_f32(z, x, y); }",
     "{ return vaddq_f32(z, vmulq_f32(x, y)); }", "linear float32"),
)  # fmt: skip


def main(folder: Path) -> int:
    """Compile and test the kernels without a mistake, then with each."""
    work = folder / "mutations"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    source = ROOT / KERNELS / "csrc"
    common = [compile_source(source / f"{name}.cpp", work, ()) for name in ("operators", "checks", "memory", "threads")]
    objects = {kind: compile_source(source / "isa.cpp", work, isa_flags(kind), kind) for kind in KINDS}
    if not passes(folder, [*common, *objects.values()], "linear int8"):
        print("without a mistake: FAILED")
        return 1
    missed = 0
    for name, kind, file, before, after, case in MUTATIONS:
        changed = work / "csrc"
        shutil.copytree(source, changed)
        text = (changed / file).read_text()
        assert text.count(before) == 1, f"{name}: {file} has {text.count(before)} times {before}"
        (changed / file).write_text(text.replace(before, after))
        mutant = {**objects, kind: compile_source(changed / "isa.cpp", work, isa_flags(kind), "mutant")}
        noticed = not passes(folder, [*common, *mutant.values()], case)
        missed += not noticed
        print(f"{kind}: {name}: {'noticed' if noticed else 'NOT NOTICED'} by {case}", flush=True)
        shutil.rmtree(changed)
    return 1 if missed else 0


def isa_flags(kind: str) -> tuple[str, ...]:
    """Return the flags of isa.cpp for one kind, as in setup.py."""
    return *KINDS[kind], f"-DSHARE4V_ISA={kind}"


def compile_source(source: Path, work: Path, flags: tuple[str, ...], name: str = "") -> Path:
    """Cross-compile one file and return the object."""
    target = work / f"{name or source.stem}.o"
    subprocess.run(["aarch64-linux-gnu-g++", *FLAGS, *flags, "-c", str(source), "-o", str(target)], check=True)
    return target


def passes(folder: Path, objects: list[Path], case: str) -> bool:
    """Link the library into the package under qemu, and return whether a case has its stored bits."""
    library = folder / "package" / KERNELS / "libshare4v.so"
    subprocess.run(["aarch64-linux-gnu-g++", "-shared", "-fopenmp", *map(str, objects), "-o", str(library)], check=True)
    test = f"tests/models/share4v/kernels/test_stored_results.py::test_results_have_the_stored_bits[{case}]"
    script = f"cd {ROOT} && . tests/aarch64/environment.sh && arm_environment {folder} && arm_pytest max '{test}'"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ)
    if done.returncode not in (0, 1):  # neither passed nor failed
        raise SystemExit(done.stdout + done.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
