"""Builds the C++ kernels; all other settings of the package are in pyproject.toml.

The kernels are compiled once for each instruction set, and the best one is chosen at run time, so a wheel runs on every
machine of its architecture. Without a C++ compiler the package is built without kernels and uses MindSpore's operators.

Environment variables: SHARE4V_NO_KERNELS=1 skips the kernels, SHARE4V_INSTRUCTION_SETS="avx512 avx2" compiles them
for these instruction sets and portable only, SHARE4V_SANITIZE=1 adds the address and undefined-behaviour sanitizers.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("mindone/models/share4v/kernels/csrc")
# Python's own variable for cross-compilation, such as linux-aarch64; it decides the wheel's tag as well.
MACHINE = os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).lower()
IS_X86 = MACHINE.endswith(("x86_64", "amd64"))
IS_AARCH64 = MACHINE.endswith(("aarch64", "arm64"))
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
AVX512_BF16 = [*AVX512, "-mavx512bf16"]
# Instruction set -> compiler flags, fastest first; isa.cpp is compiled for each.
INSTRUCTION_SETS: dict[str, list[str]] = {}
if IS_X86:
    INSTRUCTION_SETS["amx"] = [*AVX512_BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
    INSTRUCTION_SETS |= {"avx512_bf16": AVX512_BF16, "avx512": AVX512, "avx2": AVX2}
if IS_AARCH64:
    # Every aarch64 CPU has NEON, so the compiler's own macros do not tell neon from portable.
    # Without -fno-schedule-insns GCC 12 brings loads of a tile forward, and then has too few registers for its sums.
    neon = ["-DSHARE4V_NEON", "-fno-schedule-insns"]
    INSTRUCTION_SETS |= {
        "i8mm": [*neon, "-march=armv8.2-a+dotprod+i8mm"],
        "dotprod": [*neon, "-march=armv8.2-a+dotprod"],
        "neon": neon,
    }
INSTRUCTION_SETS["portable"] = []
if wanted := os.environ.get("SHARE4V_INSTRUCTION_SETS", "").split():
    if unknown := set(wanted) - set(INSTRUCTION_SETS):
        known = ", ".join(INSTRUCTION_SETS)
        raise SystemExit(f"SHARE4V_INSTRUCTION_SETS names {', '.join(sorted(unknown))}: expected some of {known}")
    # Always portable: the library may be installed on a CPU that supports none of the others.
    INSTRUCTION_SETS = {name: flags for name, flags in INSTRUCTION_SETS.items() if name in {*wanted, "portable"}}
# -ffp-contract=off: the source decides where a multiply-add rounds once, so that every instruction set gives the same
# result. -g0: Python's own flags ask for debugging information, which takes time and is stripped when linking.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fopenmp", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-Wall", "-Wno-maybe-uninitialized"]
BUILD_ERROR = "build_error.txt"  # as in mindone/models/share4v/kernels/library.py
# -g1: lines only, since variables take a quarter of the time to compile.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZERS += ["-fno-omit-frame-pointer", "-g1", "-O1"]


class BuildKernels(build_ext):
    """Builds one shared library: isa.cpp, compiled for each instruction set, and the sources that need it only once."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the library's file name, without the Python version, since the library does not depend on it."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; setuptools reports an error but continues, since the extension is optional.

        The reason is stored beside the library's place, for `share4v env`.
        """
        reason = Path(self.get_ext_fullpath(ext.name)).with_name(BUILD_ERROR)
        reason.unlink(missing_ok=True)
        try:
            self._compile_and_link(ext)
        except Exception as error:
            reason.parent.mkdir(parents=True, exist_ok=True)
            reason.write_text(f"{error}\n", encoding="utf-8", errors="replace")
            raise

    def _compile_and_link(self, ext: Extension) -> None:
        sanitizers = SANITIZERS if os.environ.get("SHARE4V_SANITIZE") else []
        macros = [("SHARE4V_INSTRUCTION_SETS", " ".join(f"SET({name})" for name in INSTRUCTION_SETS))]
        if IS_X86 or IS_AARCH64:
            macros.append(("SHARE4V_X86" if IS_X86 else "SHARE4V_AARCH64", None))

        def compile_source(
            source: str, folder: str, defined: list[tuple[str, str | None]], flags: list[str]
        ) -> list[str]:
            return self.compiler.compile(
                [str(SOURCES / source)],
                output_dir=str(Path(self.build_temp) / folder),
                macros=[*macros, *defined],
                depends=[str(path) for path in SOURCES.glob("*.h")],
                extra_postargs=[*FLAGS, *flags, *sanitizers],
            )

        jobs = [(Path(source).name, "common", [], []) for source in ext.sources]
        jobs += [("isa.cpp", name, [("SHARE4V_ISA", name)], flags) for name, flags in INSTRUCTION_SETS.items()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads suffice: each waits for a compiler process
            objects = [name for names in pool.map(lambda job: compile_source(*job), jobs) for name in names]
        flags = ["-fopenmp", *(sanitizers or ["-s"])]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=flags, target_lang="c++"
        )


KERNELS = Extension(
    "mindone.models.share4v.kernels.libshare4v",
    [str(SOURCES / name) for name in ("operators.cpp", "checks.cpp", "memory.cpp", "threads.cpp")],
    language="c++",
    optional=True,
)

setup(
    ext_modules=[] if os.environ.get("SHARE4V_NO_KERNELS") else [KERNELS],
    cmdclass={"build_ext": BuildKernels},
)
