"""Compares what the package does on a machine with what the machine's kernel says: run.sh starts it in a guest.

python checks.py RESULTS WEIGHTS [GROUP...]: writes what was found into the JSON file RESULTS, and ends with the number
of failures. WEIGHTS is a file to share, and the groups are all by default.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import guest
import numpy as np
from guest import cgroup, cores_of, hidden, in_child, lscpu, nodes_with, offline
from helpers.kernels import linear_block, run_linear
from helpers.stored_results import STORED, ExactGenerator, cases, digest

from mindone.models.share4v.cpu_cores import cpu_quota, default_threads, usable_cores
from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.kernels.numa_placement import placed, weight_nodes
from mindone.models.share4v.kernels.packing import anonymous_memory
from mindone.pipelines.image_to_text.dataset.executors.replicas import automatic_count, shares_of

MEBIBYTE = 2**20
COPY = 16 * MEBIBYTE + 4096  # bytes of a block to place: eight huge pages and a small one
CASES = (
    "linear float32",
    "linear int8-256",
    "linear int4",
    "llama int4-256",
    "llama bfloat16",
    "attention int8, heads of 128",
)
Checks = Iterator[tuple[str, Any, Any]]  # what is compared, what was found, what was expected


def nodes_of(cpus: set[int]) -> set[int]:
    """Return the nodes of CPUs that have memory, or the nearest that has, as the kernel describes them."""
    found = set()
    for node in {node for cpu, _, _, node in lscpu() if cpu in cpus}:
        distances = (guest.NODES / f"node{node}/distance").read_text().split()
        order = sorted(zip(map(int, distances), sorted(nodes_with("online")), strict=True))
        found.add(next(other for _, other in order if other in nodes_with("has_memory")))
    return found


def masks() -> dict[str, set[int]]:
    """Return sets of CPUs as taskset or a container gives them to a process."""
    every = {row[0] for row in lscpu()}
    cores = [set(cpus) for cpus in cores_of(every).values()]
    first = [min(core) for core in cores]
    by_node = [set().union(*(core for (node, _), core in group)) for _, group in by_nodes(every)]
    found = {
        "all": every,
        "one hardware thread of each core": set(first),
        "one core": cores[-1],
        "one CPU": {first[0]},
        "every third CPU": set(sorted(every)[::3]),
        **{f"group {number} of cores": node for number, node in enumerate(by_node)},
        "half of each node": set().union(*(set(sorted(node)[: -(-len(node) // 2)]) for node in by_node)),
    }
    return {name: cpus for name, cpus in found.items() if cpus}


def by_nodes(cpus: set[int]) -> list[tuple[int, list[tuple[tuple[int, int], tuple[int, ...]]]]]:
    """Return the cores of each node."""
    return [(node, list(group)) for node, group in groupby(sorted(cores_of(cpus).items()), key=lambda item: item[0][0])]


def described() -> Any:
    """Return the cores as the package sees them."""
    return [[core.node, list(core.cpus)] for core in usable_cores()]


def threads_started() -> dict[str, Any]:
    """Multiply on as many threads as the package chooses; return their number, and where they may run."""
    before = set(guest.threads_of("self"))
    kernels, rng = library(), ExactGenerator(5)
    block, _ = linear_block(rng, rng.normal(size=(2048, 256)).astype(np.float32), "int8", False, None, None)
    run_linear(kernels, np.ones((64, 256), np.float32), block, 2048)
    tasks = guest.threads_of("self")
    return {
        "chosen": kernels.threads,
        "started": len(set(tasks) - before) + 1,
        "allowed": sorted({tuple(sorted(cpus)) for cpus in tasks.values()}),
    }


def topology() -> Checks:
    """The cores and nodes are those of lscpu, for any affinity."""
    for name, cpus in masks().items():
        expected = sorted([node, list(found)] for (node, _), found in cores_of(cpus).items())
        yield f"cores of {name}", sorted(in_child(described, cpus=cpus)), expected


def threads() -> Checks:
    """One thread for each core that affinity and cgroups allow, and they may run there."""
    for name, cpus in masks().items():
        count = len(cores_of(cpus))
        expected = {"chosen": count, "started": count, "allowed": [sorted(cpus)]}
        yield f"threads on {name}", in_child(threads_started, cpus=cpus), expected
    every = {row[0] for row in lscpu()}
    cores = len(cores_of(every))
    for quota, allowed in (("250000 100000", 2), ("50000 100000", 1), ("max 100000", cores), ("6400000 100000", 64)):
        with cgroup(cpu_max=quota) as group:
            started = in_child(threads_started, group=group)
        yield f"threads with cpu.max {quota}", started["started"], min(cores, allowed)
    last = lscpu()[-1][0]
    for cpus in (str(last), f"0,{last}", f"0-{last // 2}"):
        with cgroup(cpuset_cpus=cpus, cpu_max="300000 100000") as group:
            started = in_child(threads_started, group=group)
        allowed_cpus = guest.numbers(cpus) & every
        count = min(3, len(cores_of(allowed_cpus)))
        expected = {"chosen": count, "started": count, "allowed": [sorted(allowed_cpus)]}
        yield f"threads with cpuset.cpus {cpus} and 3 CPUs' time", started, expected
    started = in_child(threads_started, environment={"OMP_NUM_THREADS": "3"})
    yield "threads with OMP_NUM_THREADS=3", started["started"], min(3, len(every))


def plan() -> dict[str, Any]:
    """Return the replicas that --replicas auto would start here."""
    cores, quota = usable_cores(), cpu_quota()
    count = automatic_count(cores, quota)
    shares = shares_of(cores, count, quota)
    own = [default_threads(share, None if quota is None else quota / count, {}) for share in shares]
    return {"count": count, "cpus": [[cpu for core in share for cpu in core.cpus] for share in shares], "threads": own}


def replicas() -> Checks:
    """As many as the documentation says, on cores of their own, of one node."""
    every = {row[0] for row in lscpu()}
    node_of = {cpu: node for cpu, _, _, node in lscpu()}
    for name, cpus in masks().items():
        found = in_child(plan, cpus=cpus)
        sizes = [len(group) for _, group in by_nodes(cpus)]
        count = 1 if sum(sizes) < 16 else sum(max(1, size // 8) for size in sizes)
        yield f"replicas on {name}", found["count"], count
        yield f"all CPUs are used once on {name}", sorted(chain.from_iterable(found["cpus"])), sorted(cpus)
        if count > 1:
            nodes = [len({node_of[cpu] for cpu in own}) for own in found["cpus"]]
            yield f"nodes of each replica on {name}", nodes, [1] * count
            cores = [len(cores_of(own)) for own in found["cpus"]]
            yield f"threads of each replica on {name}", found["threads"], cores
    total = len(cores_of(every))
    for quota in (4, 16, 24, 40):
        with cgroup(cpu_max=f"{quota}00000 100000") as group:
            found = in_child(plan, group=group)
        allowed = min(total, quota)
        sizes = [len(group) for _, group in by_nodes(every)]
        count = 1 if allowed < 16 else allowed // 8 if allowed < total else sum(max(1, size // 8) for size in sizes)
        yield f"replicas with the time of {quota} CPUs", found["count"], count
        yield f"threads are at most {quota}", sum(found["threads"]) <= quota, True
        if count > 1:
            nodes = [len({node_of[cpu] for cpu in own}) for own in found["cpus"]]
            yield f"nodes of each replica with the time of {quota} CPUs", nodes, [1] * count


def place(numa: str, block: np.ndarray) -> dict[str, Any]:
    """Place a copy; return the nodes that were chosen, and the pages on each by move_pages and by numa_maps."""
    nodes = weight_nodes(numa)
    if not nodes:
        return {"nodes": [], "pages": {}, "maps": {}, "policy": [], "same": True}
    copy = placed(block, numa, nodes)
    maps = guest.numa_maps(address=copy.ctypes.data)
    same = bool(np.array_equal(copy, block))
    return {
        "nodes": nodes,
        "pages": guest.counted(copy),
        "maps": maps["pages"],
        "policy": maps["policies"],
        "same": same,
    }


def first_touch() -> dict[int, int]:
    """Return the nodes of pages without a policy that this process writes."""
    memory = anonymous_memory(4 * MEBIBYTE, huge_pages=False)
    memory[:] = 1
    return guest.counted(memory)


def placement() -> Checks:
    """Interleaved pages are spread evenly over the nodes of the process, local ones are on its only one."""
    several = len(nodes_with("has_memory")) > 1
    every, block = masks(), np.random.default_rng(0).integers(0, 256, COPY, np.uint8)
    for name in [name for name in every if name in ("all", "one CPU", "half of each node") or "group" in name]:
        cpus = every[name]
        nodes = nodes_of(cpus)
        for huge in (True, False) if name == "all" else (True,):
            pages = "huge pages" if huge else "small pages"
            found = in_child(lambda: place("interleave", block), cpus=cpus, huge_pages=huge)
            if not several:
                yield f"interleaved on {name}", found["nodes"], []
                continue
            yield f"interleaved on {name}, {pages}: nodes", found["nodes"], sorted(nodes)
            yield f"interleaved on {name}, {pages}: the same bytes", found["same"], True
            yield from spread(f"interleaved on {name}, {pages}", found, nodes, 512 if huge else 1)
            found = in_child(lambda: place("local", block), cpus=cpus, huge_pages=huge)
            if len(nodes) > 1:
                matches = isinstance(found, str) and re.match("ValueError: numa 'local' .* pin it to one", found)
                yield f"local on {name} is refused: {found}", bool(matches), True
            else:
                yield f"local on {name}, {pages}", set(found["pages"]), {str(*nodes)}
                yield f"local on {name}, {pages}: numa_maps", found["maps"], found["pages"]
        if len(nodes) == 1:  # where the kernel itself puts pages that nobody placed
            yield f"pages without a policy on {name}", set(in_child(first_touch, cpus=cpus)), {str(*nodes)}
    for node in sorted(nodes_with("has_memory")) if several else []:
        with cgroup(cpuset_mems=str(node)) as group:
            for numa in ("interleave", "local"):
                found = in_child(lambda numa=numa: place(numa, block), group=group)
                pages = found if isinstance(found, str) else set(found["pages"])
                yield f"{numa} with cpuset.mems {node}", pages, {str(node)}


def spread(name: str, found: dict[str, Any], nodes: set[int], unit: int) -> Checks:
    counts = found["pages"]
    yield f"{name}: has pages on", set(counts), {str(node) for node in nodes}
    yield (
        f"{name}: the difference is at most two units: {counts}",
        max(counts.values()) - min(counts.values()) <= 2 * unit,
        True,
    )
    yield f"{name}: numa_maps", found["maps"], counts


def sharing(file: Path) -> Checks:
    """Processes on different nodes map a file once: its pages are on one node, and each is charged a part."""
    size = file.stat().st_size
    groups = [{cpu for _, cpus in group for cpu in cpus} for _, group in by_nodes({row[0] for row in lscpu()})]
    running = []
    for cpus in groups:
        go, told = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.sched_setaffinity(0, cpus)
            mapped = np.memmap(file, np.uint8, "r")
            int(mapped.sum(dtype=np.uint64))
            os.write(told[1], b".")
            os.read(go[0], 1)
            os._exit(0)
        os.read(told[0], 1)
        running.append((child, go[1]))
    found = [guest.smaps(child, file) for child, _ in running]
    where = [guest.numa_maps(child, file)["pages"] for child, _ in running]
    for child, go_on in running:
        os.write(go_on, b".")
        os.waitpid(child, 0)
    kib = size // 1024
    yield "Rss of each process", [one["Rss"] for one in found], [kib] * len(groups)
    yield (
        f"sum of Pss of {len(groups)}: {[one['Pss'] for one in found]}",
        abs(sum(one["Pss"] for one in found) - kib) <= len(groups),
        True,
    )
    yield (
        f"pages on nodes: {where}",
        all(sum(one.values()) == sum(where[0].values()) == size // 4096 for one in where),
        True,
    )


def bits() -> Checks:
    """The stored bits, which AVX2 computed on one thread of another machine, on any number of threads, anywhere."""
    stored, every = json.loads(STORED.read_text(encoding="utf-8")), masks()
    computed = dict(cases())

    def compute(count: int) -> dict[str, str]:
        library().threads = count
        return {name: digest(computed[name](library())) for name in CASES}

    expected = {name: stored[name] for name in CASES}
    yield "kernels", in_child(lambda: library().instruction_set), "avx2"
    for name in ("all", "every third CPU", "one CPU"):
        yield f"bits on {name}", in_child(lambda: compute(0), cpus=every[name]), expected
    count = 2 * len(every["all"])
    yield f"bits of {count} threads", in_child(lambda: compute(count)), expected
    if len(nodes_with("has_memory")) > 1:
        yield "bits of interleaved weights", *in_child(placed_product)


def placed_product() -> list[str]:
    """Return digests of a product with interleaved weights and with those that are not placed."""
    rng = ExactGenerator(6)
    block, _ = linear_block(rng, rng.normal(size=(2048, 512)).astype(np.float32), "int4", False, None, None)
    x = rng.normal(size=(5, 512)).astype(np.float32)
    copy = placed(block, "interleave", sorted(nodes_with("has_memory")))
    return [digest([run_linear(library(), x, weights, 2048)]) for weights in (copy, block)]


def odd() -> Checks:
    """Offline CPUs, and what a kernel without NUMA or a container does not show."""
    every = {row[0] for row in lscpu()}
    gone = set(sorted(every)[1::2]) if len(every) > 1 else set()
    if gone:
        with offline(gone):
            left = {row[0] for row in lscpu()}
            expected = sorted([node, list(found)] for (node, _), found in cores_of(left).items())
            yield f"cores without the CPUs {sorted(gone)}", sorted(in_child(described)), expected
            yield "threads without them", in_child(threads_started)["started"], len(expected)
            yield "replicas without them", sorted(chain.from_iterable(in_child(plan)["cpus"])), sorted(left)
    siblings = sorted([0, list(found)] for found in cores_of(every).values())
    with hidden(guest.NODES):
        yield "cores without /sys/devices/system/node", sorted(in_child(described)), siblings
        yield "threads without it", in_child(threads_started)["started"], len(siblings)
        for numa in ("interleave", "local"):
            yield f"{numa} without it", in_child(lambda numa=numa: weight_nodes(numa)), []
    with hidden(guest.CPUS):
        yield "threads without /sys/devices/system/cpu", in_child(threads_started)["started"], len(every)
    with hidden(Path("/sys")):
        yield "threads without /sys", in_child(threads_started)["started"], len(every)


def main(results: Path, shared: Path, *chosen: str) -> int:
    """Run the checks; return the number of failures."""
    groups: dict[str, Callable[[], Checks]] = {
        "topology": topology,
        "threads": threads,
        "replicas": replicas,
        "placement": placement,
        "sharing": lambda: sharing(shared),
        "bits": bits,
        "odd": odd,
    }
    found: list[dict[str, Any]] = []
    failures = 0
    for group in chosen or groups:
        began = time.monotonic()
        try:
            for name, value, expected in groups[group]():
                is_right = value == expected
                failures += not is_right
                found.append({"group": group, "name": name, "right": is_right, "found": str(value)})
                print(f"{'ok    ' if is_right else 'FAILED'} {group}: {name}", flush=True)
                if not is_right:
                    print(f"       found    {value}\n       expected {expected}", flush=True)
        except Exception:
            failures += 1
            traceback.print_exc()
        print(f"       {group}: {time.monotonic() - began:.0f} s", flush=True)
    results.write_text(json.dumps({"checks": found, "machine": guest.recorded()}, indent=1) + "\n")
    print(f"{len(found)} comparisons, {failures} failures", flush=True)
    return failures


if __name__ == "__main__":
    if "share4v.guest" not in Path("/proc/cmdline").read_text():
        sys.exit("this changes cgroups, mounts and CPUs: start it with tests/virtual_machine/run.sh, in a guest")
    sys.exit(min(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]), 99))
