"""Runs a job's replicas on a machine, and compares their cores and pages with what the machine's kernel says of them.

python job.py RESULTS FOLDER, in a guest; FOLDER was made by prepare_job.py. The executor is the package's; what the
replicas run is kernel_replica.py, with a stand-in for MindSpore's Tensor.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import guest
import kernel_replica
from guest import cores_of, lscpu
from helpers.running_processes import children, command_line

from mindone.pipelines.image_to_text.dataset.executors import replicas
from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings, ExecutorOptions, ModelChoice
from mindone.pipelines.image_to_text.dataset.state.records import Item
from mindone.pipelines.image_to_text.dataset.state.tasks import Task

TASKS_EACH = 2  # tasks of each replica


def placed_pages(pid: int) -> dict[str, dict[str, int]]:
    """Return the pages on each node of the mappings with each policy other than the default."""
    found: dict[str, Counter[str]] = {}
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        _, policy, *fields = line.split()
        for field in fields if policy != "default" else ():
            name, _, value = field.partition("=")
            if re.fullmatch(r"N\d+", name):
                found.setdefault(policy, Counter())[name[1:]] += int(value)
    return {policy: dict(pages) for policy, pages in found.items()}


def observe(pid: int, weights: Path) -> dict[str, Any]:
    """Return what the kernel says of a process."""
    allowed = Counter(json.dumps(sorted(cpus)) for cpus in guest.threads_of(pid).values())
    return {
        "allowed": dict(allowed),  # lists of CPUs -> how many threads may run on them
        "smaps": guest.smaps(pid, weights),
        "file": guest.numa_maps(pid, weights)["pages"],
        "placed": placed_pages(pid),
    }


def caption(folder: Path, numa: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Run a job with the automatic number of replicas; return what they were seen to be, and their answers."""
    choice = ModelChoice(model=folder / "model", numa=numa)
    settings, options = CaptioningSettings(batch_size=1), ExecutorOptions()
    executor = replicas.ReplicasExecutor(choice=choice, settings=settings, options=options, state=Path("/run/tmp"))
    count = TASKS_EACH * executor.count
    tasks = [Task(Item(number, str(number), str(number), {}), ("?",), (None,)) for number in range(count)]
    answers, seen = [], []
    for record in executor.run(tasks):
        answers += record.captions
        if len(answers) == count:
            own = [pid for pid in children(os.getpid()) if b"kernel_replica" in command_line(pid)]
            seen = [observe(pid, folder / "model/model.safetensors") for pid in own]
    return seen, answers


def compare(folder: Path, numa: str | None, seen: list[dict[str, Any]], answers: list[str]) -> dict[str, bool]:
    """Return what is right about a job."""
    size = (folder / "model/model.safetensors").stat().st_size // 1024
    node_of = {cpu: node for cpu, _, _, node in lscpu()}
    nodes = sorted(set(node_of.values()))
    sizes = Counter(node for node, _ in cores_of(node_of))
    every = sum(max(1, size // 8) for size in sizes.values()) if sizes.total() >= 16 else 1
    count = {None: every, "local": len(nodes), "interleave": 1}[numa]
    own = [json.loads(cpus) for one in seen for cpus in one["allowed"]]
    expected = str(json.loads((folder / "answer.json").read_text()))
    checks = {
        f"{count} processes": len(seen) == count,
        f"all threads of a process may run on its own cores: {[list(one['allowed'].items()) for one in seen]}": all(
            len(one["allowed"]) == 1 for one in seen
        ),
        "the processes have different cores, and all of them": sorted(cpu for cpus in own for cpu in cpus)
        == sorted(node_of),
        "the answers are the complete model's, on another machine": answers == [expected] * TASKS_EACH * count,
    }
    if count > 1:
        checks["cores of one node each"] = all(len({node_of[cpu] for cpu in cpus}) == 1 for cpus in own)
    # The threads of the kernels, of the process itself and of what it imports.
    threads = [sum(one["allowed"].values()) for one in seen]
    checks[f"threads {threads} for {[len(cores_of(cpus)) for cpus in own]} cores"] = all(
        len(cores_of(cpus)) <= number <= len(cores_of(cpus)) + 2 for cpus, number in zip(own, threads, strict=True)
    )
    placed = [one["placed"] for one in seen]
    if numa is None:
        total = sum(one["smaps"]["Pss"] for one in seen)
        checks[f"Pss of {count} is {total} of {size} KiB"] = 0.8 * size < total < 1.1 * size
        checks[f"pages of the file: {[one['file'] for one in seen]}"] = len({str(one["file"]) for one in seen}) == 1
    elif numa == "local":
        here = {f"prefer:{node_of[cpus[0]]}": [str(node_of[cpus[0]])] for cpus in own}
        checks[f"a copy on the own node: {placed}"] = here == {
            policy: list(pages) for one in placed for policy, pages in one.items()
        }
    else:
        pages = next((pages for policy, pages in placed[0].items() if policy.startswith("interleave")), {})
        even = sorted(pages) == [str(node) for node in nodes] and max(pages.values()) < 1.2 * min(pages.values())
        checks[f"pages on all nodes: {placed}"] = even
    if numa is not None:
        checks["the file is not mapped"] = all(not one["smaps"] for one in seen)
    return checks


def main(results: Path, folder: Path) -> int:
    """Run the jobs; return the number of failures."""
    logging.basicConfig(level=logging.WARNING)
    replicas.main = kernel_replica.main  # its module is what a replica runs
    failures, found = 0, {}
    for numa in (None, "local", "interleave"):
        began = time.monotonic()
        seen, answers = caption(folder, numa)
        found[str(numa)] = seen
        for what, is_right in compare(folder, numa, seen, answers).items():
            failures += not is_right
            print(f"{'ok    ' if is_right else 'FAILED'} job, numa {numa}: {what}", flush=True)
        print(f"       job, numa {numa}: {time.monotonic() - began:.0f} s", flush=True)
    results.write_text(json.dumps(found, indent=1) + "\n")
    return failures


if __name__ == "__main__":
    if "share4v.guest" not in Path("/proc/cmdline").read_text():
        sys.exit("this is for a guest: start it with tests/virtual_machine/run.sh")
    sys.exit(min(main(Path(sys.argv[1]), Path(sys.argv[2])), 99))
