"""Builds the C++ kernels; everything else about the package is in pyproject.toml.

The kernels are compiled once for each kind of CPU and chosen at run time, so a wheel serves every machine of its
architecture. Where no C++ compiler is found the package is built without them and runs on MindSpore's operators.
SHARE4V_NO_KERNELS=1 leaves them out; SHARE4V_SANITIZE=1 adds the address and undefined-behaviour sanitizers.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("mindone/models/share4v/kernels/csrc")
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
# Kind of CPU -> what the compiler may use; isa.cpp is compiled for each.
KINDS: dict[str, list[str]] = {"portable": []}
if IS_X86:
    KINDS |= {"avx2": AVX2, "avx512": AVX512, "amx": [*AVX512, "-mamx-tile", "-mamx-int8"]}
# No contraction: a product and a sum are one rounding or two as the source says, whatever the kind of CPU.
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wno-maybe-uninitialized"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1"]


class BuildKernels(build_ext):
    """One shared library from isa.cpp, compiled for each kind of CPU, and the sources that no kind changes."""

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without the Python version, which it does not depend on."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; an error is reported and ignored, since the extension is optional."""
        sanitizers = SANITIZERS if os.environ.get("SHARE4V_SANITIZE") else []
        macros = [("SHARE4V_X86", None)] if IS_X86 else []

        def compiled(source: str, folder: str, defined: list[tuple[str, str | None]], flags: list[str]) -> list[str]:
            return self.compiler.compile(
                [str(SOURCES / source)],
                output_dir=str(Path(self.build_temp) / folder),
                macros=[*macros, *defined],
                depends=[str(path) for path in SOURCES.glob("*.h")],
                extra_postargs=[*FLAGS, *flags, *sanitizers],
            )

        jobs = [(Path(source).name, "common", [], []) for source in ext.sources]
        jobs += [("isa.cpp", kind, [("SHARE4V_ISA", kind)], flags) for kind, flags in KINDS.items()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a compiler of its own
            objects = [name for names in pool.map(lambda job: compiled(*job), jobs) for name in names]
        flags = ["-fopenmp", *(sanitizers or ["-s"])]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=flags, target_lang="c++"
        )


KERNELS = Extension(
    "mindone.models.share4v.kernels.libshare4v",
    [str(SOURCES / name) for name in ("operators.cpp", "memory.cpp", "threads.cpp")],
    language="c++",
    optional=True,
)

setup(
    ext_modules=[] if os.environ.get("SHARE4V_NO_KERNELS") else [KERNELS],
    cmdclass={"build_ext": BuildKernels},
)
