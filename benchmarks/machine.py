"""Describes the machine for the results of the benchmarks."""

from __future__ import annotations

import os
import platform
from pathlib import Path

INSTRUCTION_SETS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


def describe() -> dict[str, object]:
    """Return the CPU model, usable cores, relevant instruction sets, memory, load and versions.

    Fields that the system does not provide (/proc exists only on Linux) are None or empty.
    """
    cpu = _proc_fields("/proc/cpuinfo")
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    memory = _proc_fields("/proc/meminfo").get("MemTotal")
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "load_average_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _proc_fields(path: str) -> dict[str, str]:
    """Return the `name : value` lines of a file in /proc; of repeated names, the first."""
    fields: dict[str, str] = {}
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields
