"""Cores, sockets and quotas are read from files as Linux shows them on large machines and in containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mindone.models.share4v.cpu_cores import Core, cpu_quota, default_threads, usable_cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def two_sockets(root: Path) -> Path:
    """Two sockets of two cores with two hardware threads each, numbered as most firmware does: second threads last."""
    files = {"sys/devices/system/node/node0/cpulist": "0-1,4-5", "sys/devices/system/node/node1/cpulist": "2-3,6-7"}
    for cpu in range(8):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = f"{cpu % 4},{cpu % 4 + 4}"
    return write(root, files)


def test_hardware_threads_of_a_core_are_one_core_and_nodes_stay_together(tmp_path: Path) -> None:
    root = two_sockets(tmp_path)
    assert usable_cores(range(8), root) == [Core(0, (0, 4)), Core(0, (1, 5)), Core(1, (2, 6)), Core(1, (3, 7))]
    assert usable_cores([1, 6, 7], root) == [Core(0, (1,)), Core(1, (6,)), Core(1, (7,))]  # as taskset leaves them


def test_without_a_description_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert usable_cores([0, 1], tmp_path) == [Core(0, (0,)), Core(0, (1,))]


def test_the_cores_of_this_process_are_those_of_its_affinity() -> None:
    assert {cpu for core in usable_cores() for cpu in core.cpus} == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5),
        # A service of systemd whose slice is limited, too.
        (
            {
                "proc/self/cgroup": "0::/work.slice/captions.service",
                "sys/fs/cgroup/work.slice/cpu.max": "300000 100000",
                "sys/fs/cgroup/work.slice/captions.service/cpu.max": "800000 100000",
            },
            3.0,
        ),
        # Docker on version 1: the path is the host's, but the container sees its own group as the root.
        (
            {
                "proc/self/cgroup": "5:memory:/docker/f00\n4:cpu,cpuacct:/docker/f00\n1:cpuset:/docker/f00",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        # Both versions at once; in version 1, -1 is no limit.
        (
            {
                "proc/self/cgroup": "1:cpu:/\n0::/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/unified/cpu.max": "400000 100000",
            },
            4.0,
        ),
    ],
)
def test_the_quota_of_a_container(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(write(tmp_path, files)) == quota


def test_threads_follow_cores_quota_and_the_users_own_number(tmp_path: Path) -> None:
    cores = usable_cores(range(8), two_sockets(tmp_path))
    assert default_threads(cores, None, {}) == 4  # not 8 hardware threads
    assert default_threads(cores, 2.9, {}) == 2
    assert default_threads(cores, 0.5, {}) == 1
    assert default_threads(cores, 100.0, {}) == 4
    assert default_threads(cores, 2.0, {"OMP_NUM_THREADS": "3,1"}) == 3
    assert default_threads(cores, None, {"OMP_NUM_THREADS": "99"}) == 8
    for unusable in ("", "0", "many"):
        assert default_threads(cores, None, {"OMP_NUM_THREADS": unusable}) == 4
