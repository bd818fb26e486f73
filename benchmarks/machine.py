"""Describes the machine for the results of the benchmarks, and refuses to measure while it is busy."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path

INSTRUCTION_SETS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
# (vendor, family, model) -> microarchitecture: cloud machines all call themselves "AMD EPYC" or "Intel Xeon Processor".
MICROARCHITECTURES = {
    ("AuthenticAMD", 25, 1): "Zen 3",
    ("AuthenticAMD", 25, 17): "Zen 4",
    ("AuthenticAMD", 26, 2): "Zen 5",
    ("GenuineIntel", 6, 85): "Skylake or Cascade Lake",
    ("GenuineIntel", 6, 106): "Ice Lake",
    ("GenuineIntel", 6, 143): "Sapphire Rapids",
    ("GenuineIntel", 6, 207): "Emerald Rapids",
}
BUSY_CORES = 0.15  # that other programs may use, on average
_WATCH_SECONDS = 2.0


class BusyMachineError(SystemExit):
    """Other programs use the processors; it ends a benchmark with its message and the status 1."""


def describe() -> dict[str, object]:
    """Return the CPU model, usable cores, relevant instruction sets, memory, load and versions.

    Fields that the system does not provide (/proc exists only on Linux) are None or empty.
    """
    cpu = _proc_fields("/proc/cpuinfo")
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    memory = _proc_fields("/proc/meminfo").get("MemTotal")
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "microarchitecture": MICROARCHITECTURES.get(
            (cpu.get("vendor_id", ""), int(cpu.get("cpu family") or 0), int(cpu.get("model") or 0))
        ),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "load_average_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def title(described: dict[str, object]) -> str:
    """Return the machine's name for people; machines with the same name are the same kind.

    Example:
        >>> title({"cpu": "AMD EPYC", "microarchitecture": "Zen 4", "cores": 2})
        'AMD EPYC (Zen 4), 2 cores'
    """
    kind = described.get("microarchitecture")
    return f"{described['cpu']}{f' ({kind})' if kind else ''}, {described['cores']} cores"


def slug(described: dict[str, object]) -> str:
    """Return the machine's name for files, such as "amd-epyc-zen-4-2-cores"."""
    return re.sub(r"[^a-z0-9]+", "-", title(described).lower()).strip("-")


def cpu_seconds() -> float | None:
    """Return the CPU time that all processes, and the hypervisor's other machines, have used since the start."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, interrupts, soft, steal, *_ = map(int, fields)
    return (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")


def require_idle(allow_busy: bool = False) -> float | None:
    """Return how many cores other programs use, watched for two seconds; None if the system does not say.

    Raises:
        BusyMachineError: they use more than BUSY_CORES, and that is not allowed.
    """
    before, own, start = cpu_seconds(), time.process_time(), time.perf_counter()
    if before is None:
        return None
    time.sleep(_WATCH_SECONDS)
    used = (cpu_seconds() or before) - before - (time.process_time() - own)
    cores = max(0.0, used / (time.perf_counter() - start))
    if cores > BUSY_CORES and not allow_busy:
        raise BusyMachineError(
            f"other programs use {cores:.2f} cores of this machine, so speeds would be wrong: end them, or pass "
            "--allow-busy to measure anyway"
        )
    return round(cores, 3)


def _proc_fields(path: str) -> dict[str, str]:
    """Return the `name : value` lines of a file in /proc; of repeated names, the first."""
    fields: dict[str, str] = {}
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields
