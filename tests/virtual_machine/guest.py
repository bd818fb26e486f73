"""What the kernel of a machine says about its CPUs, nodes and memory: the reference for the package."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CGROUPS = Path("/sys/fs/cgroup")
NODES = Path("/sys/devices/system/node")
CPUS = Path("/sys/devices/system/cpu")
PAGE = os.sysconf("SC_PAGE_SIZE")
PR_SET_THP_DISABLE = 41


def lscpu() -> list[tuple[int, int, int, int]]:
    """Return (CPU, core, socket, node) of every CPU that is online, as util-linux numbers them."""
    text = subprocess.run(["lscpu", "-p=CPU,CORE,SOCKET,NODE"], check=True, capture_output=True, text=True).stdout
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")]
    return [(int(row[0]), int(row[1]), int(row[2]), int(row[3] or 0)) for row in rows]


def cores_of(cpus: Iterable[int]) -> dict[tuple[int, int], tuple[int, ...]]:
    """Return the CPUs of each (node, core), of those that are given."""
    wanted, found = set(cpus), dict[tuple[int, int], tuple[int, ...]]()
    for cpu, core, _, node in lscpu():
        if cpu in wanted:
            found[node, core] = (*found.get((node, core), ()), cpu)
    return found


def status(name: str, task: str = "self") -> str:
    """Return a line of /proc/PID/status."""
    for line in Path(f"/proc/{task}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    raise KeyError(name)


def numbers(text: str) -> set[int]:
    """Return the numbers of a list such as 0-3,8."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def nodes_with(what: str) -> set[int]:
    """Return the nodes of /sys/devices/system/node/has_cpu, has_memory or online."""
    return numbers((NODES / what).read_text())


def counted(array: np.ndarray) -> dict[int, int]:
    """Return how many pages of an array, a mapping of its own, are on each node, by move_pages(2), which moves none."""
    first = -(-array.ctypes.data // PAGE)
    count = (array.ctypes.data + array.nbytes) // PAGE - first
    pages = (ctypes.c_void_p * count)(*((first + number) * PAGE for number in range(count)))
    where = (ctypes.c_int * count)()
    system = ctypes.CDLL(None, use_errno=True).syscall
    if system(279, 0, ctypes.c_ulong(count), pages, None, where, 0):
        raise OSError(ctypes.get_errno(), "move_pages")
    return dict(Counter(where))


def numa_maps(pid: int | str = "self", file: Path | None = None, address: int | None = None) -> dict[str, Any]:
    """Return what /proc/PID/numa_maps says of the mappings of a file, or of the one at an address.

    Returns: its policies, and the pages of 4 KiB on each node.
    """
    starts = [int(line.split("-")[0], 16) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    wanted = max((start for start in starts if address is not None and start <= address), default=None)
    found: dict[str, Any] = {"policies": [], "pages": Counter()}
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        start, policy, *fields = line.split()
        if (f"file={file}" in fields) if file else int(start, 16) == wanted:
            found["policies"].append(policy)
            values = dict(field.partition("=")[::2] for field in fields)
            factor = int(values.get("kernelpagesize_kB", 4)) // 4
            for name, value in values.items():
                if re.fullmatch(r"N\d+", name):
                    found["pages"][int(name[1:])] += int(value) * factor
    found["pages"] = dict(found["pages"])
    return found


def smaps(pid: int | str, file: Path) -> dict[str, int]:
    """Return what /proc/PID/smaps says of the mappings of a file, in KiB."""
    total: Counter[str] = Counter()
    is_file = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if " " in name:
            is_file = line.endswith(f" {file}")
        elif is_file and value.endswith(" kB"):
            total[name] += int(value.split()[0])
    return dict(total)


def threads_of(pid: int | str) -> dict[int, set[int]]:
    """Return the CPUs that each thread of a process may run on."""
    return {
        int(task.name): numbers(status("Cpus_allowed_list", f"{pid}/task/{task.name}"))
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def in_child(
    function: Callable[[], Any],
    *,
    cpus: Iterable[int] | None = None,
    group: Path | None = None,
    huge_pages: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Return what a function returns, as JSON, in a process with an affinity, in a cgroup. An error is its text."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))
            if cpus is not None:
                os.sched_setaffinity(0, set(cpus))
            if not huge_pages and ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
                raise OSError("prctl")
            os.environ.update(environment or {})
            answer = function()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, code = os.waitpid(child, 0)
    if not text:
        raise RuntimeError(f"the process ended with {code}")
    return json.loads(text)


@contextmanager
def cgroup(**limits: str) -> Iterator[Path]:
    """Make a cgroup of version 2; limits are such as cpu_max="200000 100000" and cpuset_cpus="0-3"."""
    (CGROUPS / "cgroup.subtree_control").write_text("+cpu +cpuset")
    group = CGROUPS / f"share4v-{time.monotonic_ns()}"
    group.mkdir()
    try:
        for name, value in limits.items():
            (group / name.replace("_", ".", 1)).write_text(value)
        yield group
    finally:
        group.rmdir()


@contextmanager
def hidden(folder: Path) -> Iterator[None]:
    """Show an empty folder in place of one of /sys, as a kernel without that feature has none."""
    subprocess.run(["mount", "-t", "tmpfs", "hidden", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def offline(cpus: Iterable[int]) -> Iterator[None]:
    """Take CPUs offline."""
    files = [CPUS / f"cpu{cpu}/online" for cpu in cpus]
    for file in files:
        file.write_text("0")
    try:
        yield
    finally:
        for file in files:
            file.write_text("1")


def recorded() -> dict[str, Any]:
    """Return the files of /sys that describe the CPUs and nodes, and lscpu's own table."""
    names = ["online", "possible", "has_cpu", "has_memory"]
    paths = [NODES / name for name in names] + [CPUS / name for name in ("online", "possible", "offline")]
    paths += [path for node in sorted(NODES.glob("node[0-9]*")) for path in (node / "cpulist", node / "distance")]
    for cpu in sorted(CPUS.glob("cpu[0-9]*")):
        paths.append(cpu / "topology/thread_siblings_list")
        paths.append(cpu / "topology/physical_package_id")
    files = {str(path)[1:]: path.read_text().rstrip("\n") for path in paths if path.is_file()}
    return {"kernel": os.uname().release, "lscpu": lscpu(), "files": files}
