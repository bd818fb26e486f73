"""`share4v env`: versions, CPU, kernels and environment variables, as a bug report needs them."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..printing import one_line, print_error, print_json, print_text, redacted
from .exit_status import DONE

# Packages whose versions are listed -> what they are needed for.
PACKAGES = {
    "mindone-share4v": "",
    "mindone": "",
    "mindspore": "",
    "numpy": "",
    "sentencepiece": "",
    "safetensors": "",
    "huggingface-hub": "",
    "pillow": "",
    "pillow-heif": "HEIC images",
    "pyarrow": "Parquet and Arrow tables",
    "av": "videos",
    "matplotlib": "share4v report",
    "jinja2": "share4v report",
    "ray": "--engine ray",
    "pycocoevalcap": "share4v score",
    "transformers": "the language model of mindnlp",
    "mindnlp": "the language model of mindnlp",
    "torch": "",
}
# Flags of /proc/cpuinfo for which the kernels have code of their own.
CPU_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "i8mm",
)  # fmt: skip
VARIABLE_PREFIXES = ("SHARE4V_", "HF_", "OMP_", "ASCEND_", "GLOG_", "MS_", "CUDA_VISIBLE")
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "TMPDIR", "HOME")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def run(arguments: Namespace) -> int:
    """Print the description and return the exit status."""
    found = describe()
    if arguments.json:
        print_json(found)
        return DONE
    for title, values in found.items():
        print_text(f"{title}:")
        for name, value in values.items():
            print_text(f"  {name}: {one_line(value)}")
    print_error("for a bug report, add the command, all that it printed, and what you expected instead")
    return DONE


def describe() -> dict[str, dict[str, str]]:
    """Return the sections of the description; every value is a text."""
    return {
        "system": _system(),
        "packages": {name: _version(name, use) for name, use in PACKAGES.items()},
        "kernels": _kernels(),
        "environment": _environment(os.environ),
    }


def _system() -> dict[str, str]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, flags = _processor()
    values = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "architecture": platform.machine(),
        "cpu": f"{name}, {cpus} hardware threads for this process",
        "cpu features": " ".join(flag for flag in CPU_FLAGS if flag in flags) or "none of those that the kernels use",
        "c++ compiler": shutil.which("c++") or shutil.which("g++") or "not found",
        "java": shutil.which("java") or "not found (METEOR and SPICE of share4v score need it)",
    }
    with suppress(OSError, ValueError):
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        values["memory"] = f"{pages * size / 1e9:.1f} GB"
    return values


def _processor() -> tuple[str, set[str]]:
    """Return the name and the flags of the CPU; on systems without /proc, only a name."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    return name, flags


def _version(name: str, use: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"not installed (for {use})" if use else "not installed"


def _kernels() -> dict[str, str]:
    """Return whether the kernels work; any failure of MindSpore's import is part of the answer."""
    try:
        kernels = import_module("mindone.models.share4v.kernels.library")
        cores = import_module("mindone.models.share4v.cpu_cores")
    except Exception as error:  # an installation can be broken in any way, and this command describes it
        return {"built": f"unknown: mindone cannot be imported ({type(error).__name__}: {error})"}
    on_nodes = Counter(core.node for core in cores.usable_cores())
    quota = cores.cpu_quota()
    found = {
        "cores": ", ".join(f"{count} on NUMA node {node}" for node, count in on_nodes.items()),
        "limit of the cgroups": "none" if quota is None else f"the time of {quota:g} CPUs",
    }
    try:
        library = kernels.library()
    except (OSError, ValueError) as error:
        return {"built": f"no: {error}", **found}
    return {
        "built": f"yes ({library.path})",
        "instruction set": f"{library.instruction_set}; supported here: {', '.join(library.instruction_sets())}",
        "threads": str(library.threads),
        **found,
    }


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have an effect; values of tokens and keys are hidden."""
    names = [name for name in variables if name.startswith(VARIABLE_PREFIXES) or name in VARIABLES]
    found = {
        name: "(set)" if any(word in name.upper() for word in _SECRET) else redacted(variables[name])
        for name in sorted(names)
    }
    return found if "HOME" in found else {**found, "HOME": "not set"}
