"""The limits of the machine, measured with the kernels' threads: memory bandwidth, and the peak of each arithmetic."""

from __future__ import annotations

from mindone.models.share4v.kernels.library import PEAKS, library
from mindone.models.share4v.kernels.packing import anonymous_memory

READ_BYTES = 1 << 29  # to measure the memory bandwidth


def limits(rounds: int = 3) -> dict[str, float]:
    """Return "memory" in bytes per second read, and operations per second by arithmetic; 0 if the CPU has none."""
    data = anonymous_memory(READ_BYTES)
    data[:] = 1
    found = {"memory": max(library().read_bandwidth(data) for _ in range(rounds))}
    return found | {name: max(library().peak_operations(name) for _ in range(rounds)) for name in PEAKS}
