"""Weights on NUMA nodes: which nodes are chosen, and that the system is told so; this machine may have only one."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from mindone.models.share4v import Share4V, convert
from mindone.models.share4v.cpu_cores import Core, memory_nodes
from mindone.models.share4v.kernels import numa_placement
from mindone.models.share4v.kernels.numa_placement import PlacementError, place_weights, placed, weight_nodes

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no mbind")
POLICY_OF_ADDRESS = 2  # MPOL_F_ADDR of get_mempolicy
GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}


def tree(root: Path, nodes: dict[int, str], memory: str, allowed: str) -> Path:
    for node, cpus in nodes.items():
        folder = root / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")
    (root / "sys/devices/system/node/has_memory").write_text(f"{memory}\n")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/status").write_text(f"Name:\tpython\nMems_allowed:\tffff\nMems_allowed_list:\t{allowed}\n")
    return root


def runs_on(monkeypatch: pytest.MonkeyPatch, *cpus: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(cpus), raising=False)


def test_a_node_without_memory_uses_the_nearest_that_has_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes kept the mapped file, and were told that the machine leaves no choice."""
    root = tree(tmp_path, {0: "0-1", 1: "2-3", 2: "", 3: "4-7"}, "0,2-3", "0-3")
    (root / "sys/devices/system/node/online").write_text("0-3\n")
    (root / "sys/devices/system/node/node1/distance").write_text("31 10 31 21\n")
    runs_on(monkeypatch, 2, 3)
    assert weight_nodes("local", root) == weight_nodes("interleave", root) == (3,)
    runs_on(monkeypatch, 0, 1, 2)
    assert weight_nodes("interleave", root) == (0, 3)
    (root / "proc/self/status").write_text("Mems_allowed_list:\t0,2\n")
    assert weight_nodes("local", root) == (0,)


def test_a_single_node_with_memory_leaves_nothing_to_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_on(monkeypatch, 1)
    assert weight_nodes("local", tree(tmp_path, {0: "0", 1: "1"}, "0", "0")) == ()


@pytest.mark.parametrize(
    ("memory", "allowed", "nodes"), [("0-2", "0-2", (0, 1, 2)), ("0,2", "0-2", (0, 2)), ("0-2", "1-2", (1, 2))]
)
def test_only_nodes_with_memory_for_this_process_are_used(
    memory: str, allowed: str, nodes: tuple[int, ...], tmp_path: Path
) -> None:
    root = tree(tmp_path, {0: "0", 1: "1", 2: "2"}, memory, allowed)
    assert memory_nodes([Core(node, (node,)) for node in range(3)], root) == nodes


def test_the_nodes_are_those_on_which_the_process_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {0: "0-3", 1: "4-7"}, "0-1", "0-1")
    runs_on(monkeypatch, 2, 3, 4)
    assert weight_nodes("interleave", root) == (0, 1) and weight_nodes(None, root) == ()
    with pytest.raises(ValueError, match=r"this process runs on the nodes 0, 1: pin it .*--cpunodebind=0.*--replicas"):
        weight_nodes("local", root)
    runs_on(monkeypatch, 5, 6)
    assert weight_nodes("local", root) == weight_nodes("interleave", root) == (1,)
    with pytest.raises(ValueError, match="numa 'socket' is not supported: use one of interleave, local"):
        weight_nodes("socket", root)


def test_one_node_leaves_nothing_to_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, {0: "0-1"}, "0", "0")
    runs_on(monkeypatch, 0, 1)
    with caplog.at_level(logging.WARNING):
        assert not place_weights([], "interleave", root) and not place_weights([], None, root)
    assert caplog.text.count("numa (--numa) 'interleave' has no effect") == 1


@LINUX
@pytest.mark.parametrize("numa", ["interleave", "local"])
def test_the_system_has_the_policy_for_the_copy(numa: str) -> None:
    """get_mempolicy(2) says which policy and which nodes an address has."""
    node = memory_nodes(numa_placement.usable_cores())[0]
    block = np.random.default_rng(0).integers(0, 256, 3 * 2**20 + 64, np.uint8)
    copy = placed(block, numa, [node])
    assert np.array_equal(copy, block) and not np.shares_memory(copy, block)
    system, mode, mask = ctypes.CDLL(None, use_errno=True).syscall, ctypes.c_int(), (ctypes.c_ulong * 16)()
    number, where = GET_MEMPOLICY[numa_placement.platform.machine()], ctypes.c_void_p(copy.ctypes.data + 2**20)
    bits, flags = ctypes.c_ulong(16 * 64 + 1), ctypes.c_ulong(POLICY_OF_ADDRESS)
    assert system(ctypes.c_long(number), ctypes.byref(mode), mask, bits, where, flags) == 0
    assert (mode.value, mask[node // 64]) == (numa_placement.POLICIES[numa], 1 << node % 64)


@LINUX
def test_what_the_system_refuses_is_an_error_in_words() -> None:
    with pytest.raises(PlacementError, match=r"to place memory on NUMA nodes \(1000\): Invalid argument.*mbind"):
        placed(np.zeros(4096, np.uint8), "local", [1000])


@LINUX
def test_a_placed_model_computes_the_same_and_no_longer_reads_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert("sharegpt4v-tiny", tmp_path / "int4", dtype="int4", fast=True)
    mapped = Share4V.from_pretrained(tmp_path / "int4")
    ids = mapped.generate(input_ids=[[1, 5, 9]], max_new_tokens=4)
    del mapped
    monkeypatch.setattr(numa_placement, "nodes_with_memory", lambda root: {0, 1})
    model = Share4V.from_pretrained(tmp_path / "int4", numa="interleave")
    (tmp_path / "int4" / "model.safetensors").write_bytes(b"")
    assert model.generate(input_ids=[[1, 5, 9]], max_new_tokens=4) == ids


def test_cells_have_no_blocks_to_place() -> None:
    with pytest.raises(ValueError, match="numa 'interleave' places the weights of the CPU kernels"):
        Share4V.from_pretrained("sharegpt4v-tiny", numa="interleave", language_backend="mindspore")
