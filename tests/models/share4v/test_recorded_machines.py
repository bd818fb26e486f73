"""Machines as Linux describes them (emulated ones: tests/virtual_machine), with lscpu's own table as the reference."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mindone.models.share4v.cpu_cores import Core, default_threads, memory_nodes, nodes_with_memory, usable_cores
from mindone.pipelines.image_to_text.dataset.executors.replicas import automatic_count, shares_of

MACHINES = {path.stem: path for path in sorted(Path(__file__).with_name("recorded_machines").glob("*.json"))}


def machine(name: str, root: Path) -> list[list[int]]:
    """Write the files of /sys of a machine, and return (CPU, core, socket, node) by lscpu."""
    recorded: dict[str, Any] = json.loads(MACHINES[name].read_text(encoding="utf-8"))
    for path, text in recorded["files"].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")
    rows: list[list[int]] = recorded["lscpu"]
    return rows


@pytest.mark.parametrize("name", MACHINES)
def test_cores_and_nodes_are_those_of_lscpu(name: str, tmp_path: Path) -> None:
    rows = machine(name, tmp_path)
    expected: dict[tuple[int, int], tuple[int, ...]] = {}
    for cpu, core, _, node in rows:
        expected[node, core] = (*expected.get((node, core), ()), cpu)
    cores = usable_cores([cpu for cpu, *_ in rows], tmp_path)
    assert sorted((core.node, core.cpus) for core in cores) == sorted(
        (node, cpus) for (node, _), cpus in expected.items()
    )
    assert [core.node for core in cores] == sorted(core.node for core in cores)
    assert default_threads(cores, None, {}) == len(expected)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("quota", [None, 16.0, 24.0, 40.0])
def test_every_automatic_replica_has_cores_of_one_node(name: str, quota: float | None, tmp_path: Path) -> None:
    rows = machine(name, tmp_path)
    cores = usable_cores([cpu for cpu, *_ in rows], tmp_path)
    count = automatic_count(cores, quota)
    shares = shares_of(cores, count, quota)
    assert len(shares) == count
    if count > 1:
        assert [len({core.node for core in share}) for share in shares] == [1] * count
    sizes = Counter(node for node, _ in {(node, core) for _, core, _, node in rows})
    if quota is None or quota >= len(cores):
        assert count == (sum(max(1, size // 8) for size in sizes.values()) if len(cores) >= 16 else 1)
        assert [core for share in shares for core in share] == cores
    else:
        assert sum(default_threads(share, quota / count, {}) for share in shares) <= quota


def test_the_node_without_memory_uses_that_of_the_nearest(tmp_path: Path) -> None:
    """On this machine, pages without a policy that node 1 writes lie on node 2, as checks.py saw."""
    machine("odd", tmp_path)
    assert nodes_with_memory(tmp_path) == {0, 2, 3}
    assert memory_nodes([Core(1, (2,))], tmp_path) == (2,)
    assert memory_nodes(usable_cores(range(8), tmp_path), tmp_path) == (0, 2)
