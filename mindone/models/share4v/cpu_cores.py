"""The processors that this process may use: cores, sockets, and the limits of affinity and of containers (cgroups)."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
NODES = "sys/devices/system/node"


@dataclass(frozen=True)
class Core:
    """A physical core of which this process may use at least one hardware thread.

    Attributes:
        node: number of its NUMA node, which is a socket or a part of one.
        cpus: the hardware threads that may be used, by the system's numbers.
    """

    node: int
    cpus: tuple[int, ...]


def usable_cores(cpus: Sequence[int] | None = None, root: Path = ROOT) -> list[Core]:
    """Return the cores that this process may use, those of a NUMA node together.

    Args:
        cpus: the hardware threads to use; by default those of the process's affinity, which a container's set of CPUs
            limits too. On systems without affinity each CPU counts as a core.
        root: where `sys` is mounted.

    Example:
        >>> from mindone.models.share4v.cpu_cores import usable_cores
        >>> len(usable_cores()) >= 1
        True
    """
    if cpus is None:
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    nodes = _nodes(root)
    cores: dict[tuple[int, int], list[int]] = {}
    for cpu in cpus:
        # The siblings' lowest number names the core: core_id alone is only unique within a socket.
        siblings = _numbers(_read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
        cores.setdefault((nodes.get(cpu, 0), min(siblings, default=cpu)), []).append(cpu)
    return [Core(node, tuple(found)) for (node, _), found in sorted(cores.items())]


def memory_nodes(cores: Sequence[Core], root: Path = ROOT) -> tuple[int, ...]:
    """Return the NUMA nodes whose memory is nearest to some cores.

    It is that of the cores' own nodes, or of others if those have no memory, or none that this process may use.

    Args:
        cores: as `usable_cores` returns them.
        root: where `sys` and `proc` are mounted.

    Example:
        >>> from mindone.models.share4v.cpu_cores import memory_nodes, usable_cores
        >>> len(memory_nodes(usable_cores())) >= 1
        True
    """
    found = {core.node for core in cores}
    allowed = "".join(
        line.partition(":")[2].strip()
        for line in _read(root / "proc/self/status").splitlines()
        if line.startswith("Mems_allowed_list:")
    )
    limits = [limit for limit in (nodes_with_memory(root), set(_numbers(allowed))) if limit]
    usable = set.intersection(*limits) if limits else found
    return tuple(sorted({_nearest(node, usable, root) for node in found})) if usable else ()


def nodes_with_memory(root: Path = ROOT) -> set[int]:
    """Return the NUMA nodes of this machine that have memory; none on a system that does not describe nodes."""
    return set(_numbers(_read(root / NODES / "has_memory")))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return how many CPUs' time the cgroups of this process allow it, or None if they do not limit it.

    Reads `cpu.max` of version 2 and `cpu.cfs_quota_us` of version 1, of the process's group and of all groups around
    it, as far as a container shows them.
    """
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / name for name in (controllers, "cpu")]
        else:
            continue
        group = Path(path.lstrip("/"))
        for mount in mounts:
            quotas += [quota for one in (group, *group.parents) if (quota := _quota_of(mount / one)) is not None]
    return min(quotas, default=None)


def default_threads(
    cores: Sequence[Core] | None = None,
    quota: float | None = None,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Return the number of threads of a kernel: one for each physical core, and no more than the cgroups' quota.

    The quota is rounded down, because a thread that is stopped for a part of the time keeps all others waiting. A
    second hardware thread of a core adds nothing: both wait for the same memory and arithmetic. OMP_NUM_THREADS
    replaces the number, up to the hardware threads that may be used.

    Args:
        cores, quota: by default those of this process.
        environment: has OMP_NUM_THREADS.
    """
    if cores is None:
        cores, quota = usable_cores(), cpu_quota()
    asked = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdigit() and int(asked):
        return min(int(asked), sum(len(core.cpus) for core in cores))
    return len(cores) if quota is None else max(1, min(len(cores), int(quota)))


def _nearest(node: int, usable: Collection[int], root: Path) -> int:
    """Return the node itself if it is usable, otherwise the nearest one that is."""
    if node in usable:
        return node
    names = _numbers(_read(root / NODES / "online"))  # the distances are in this order
    distances = dict(zip(names, map(int, _read(root / NODES / f"node{node}/distance").split()), strict=False))
    return min(usable, key=lambda other: (distances.get(other, math.inf), other))


def _nodes(root: Path) -> dict[int, int]:
    """Return the NUMA node of each CPU."""
    return {
        cpu: int(path.name[4:])
        for path in (root / NODES).glob("node[0-9]*")
        for cpu in _numbers(_read(path / "cpulist"))
    }


def _quota_of(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    with suppress(ValueError):
        if int(quota) > 0 and int(period) > 0:
            return int(quota) / int(period)
    return None  # "max", -1, or no such file


def _numbers(text: str) -> list[int]:
    """Return the numbers of a list such as "0-3,8"."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # another system, another version of cgroups, or a container that hides it
        return ""
