"""Replicas: the records are those of one process, whatever is killed, and the weights are in memory once."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.jobs import listed
from helpers.pictures import write_folder
from helpers.running_processes import children, command_line

from mindone.models.share4v.conversion import convert
from mindone.models.share4v.cpu_cores import Core
from mindone.pipelines.image_to_text.dataset.executors.local import LocalExecutor
from mindone.pipelines.image_to_text.dataset.executors.replicas import (
    Backlog,
    ReplicasExecutor,
    automatic_count,
    check_count,
    replica_count,
    shares_of,
    shares_weights,
)
from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings, ExecutorOptions, ModelChoice
from mindone.pipelines.image_to_text.dataset.state.records import Item, JobError, Record
from mindone.pipelines.image_to_text.dataset.state.tasks import Task
from mindone_share4v.cli import main

COUNT, DUPLICATES, BROKEN = 100, 6, 20
TIMEOUT = 600.0  # seconds after which a hanging process fails the test
SETTINGS = CaptioningSettings(batch_size=4, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("replicas") / "photos"
    write_folder(place, COUNT, broken=True, duplicates=DUPLICATES)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sharegpt4v-tiny, converted."""
    directory = tmp_path_factory.mktemp("converted") / "tiny-int8"
    convert("sharegpt4v-tiny", directory, dtype="int8")
    return directory


def tasks_of(folder: Path) -> Iterator[Task]:
    for item in listed(folder):
        yield Task(item, ("Describe the image.",), (None,))


def executor(kind: type, model: Path, state: Path, replicas: int = 2) -> LocalExecutor | ReplicasExecutor:
    options = ExecutorOptions(replicas=replicas)
    return kind(choice=ModelChoice(model=model), settings=SETTINGS, options=options, state=state)


def by_number(records: list[Record]) -> dict[int, Record]:
    found = {record.number: replace(record, seconds=0.0) for record in records}
    assert len(found) == len(records)
    return found


@pytest.fixture(scope="module")
def local(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Record]:
    state = tmp_path_factory.mktemp("local")
    return by_number(list(executor(LocalExecutor, model, state).run(tasks_of(folder))))


def replicas_of(pid: int) -> list[int]:
    """Return the replicas of a process: those of its children that have its job's module as an argument."""
    return [one for one in children(pid) if b"executors.replica" in command_line(one)]


def mapped(pid: int, file: Path) -> dict[str, int]:
    """Return what /proc/PID/smaps says of the mappings of a file, in KiB."""
    total: dict[str, int] = {}
    is_file = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if " " in name:  # the first line of a mapping
            is_file = line.endswith(f" {file}")
        elif is_file and value.endswith(" kB"):
            total[name] = total.get(name, 0) + int(value.split()[0])
    return total


def test_the_records_are_those_of_one_process_and_the_weights_are_in_memory_once(
    folder: Path, model: Path, local: dict[int, Record], tmp_path: Path
) -> None:
    records: list[Record] = []
    seen: dict[int, dict[str, int]] = {}
    replicas = executor(ReplicasExecutor, model, tmp_path)
    assert isinstance(replicas, ReplicasExecutor)
    tasks = list(tasks_of(folder))[: 2 * replicas.in_flight]  # each replica gets half of them, however late it is
    for record in replicas.run(tasks):
        records.append(record)
        if len(records) == len(tasks):
            seen = {pid: mapped(pid, model / "model.safetensors") for pid in replicas_of(os.getpid())}
    assert by_number(records) == {task.item.number: local[task.item.number] for task in tasks}
    assert len(seen) == 2 and replicas_of(os.getpid()) == []
    size = (model / "model.safetensors").stat().st_size / 1024
    for found in seen.values():
        assert found["Rss"] > 0.8 * size  # all of it is mapped and was read,
        assert found["Private_Clean"] + found["Private_Dirty"] < 0.05 * size  # and nearly nothing belongs to one alone
    assert sum(found["Pss"] for found in seen.values()) < 1.1 * size


def test_a_killed_replica_is_replaced(
    folder: Path, model: Path, local: dict[int, Record], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records: list[Record] = []
    with caplog.at_level(logging.WARNING):
        for record in executor(ReplicasExecutor, model, tmp_path).run(tasks_of(folder)):
            records.append(record)
            if len(records) == 3:
                os.kill(replicas_of(os.getpid())[0], signal.SIGKILL)
    assert by_number(records) == local
    assert len(records) == COUNT + DUPLICATES + BROKEN and sum(record.error is not None for record in records) == BROKEN
    assert "was ended by SIGKILL and is started again" in caplog.text


def test_a_killed_job_ends_its_replicas_and_resumes_with_any_number_of_them(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    command = ["caption-dataset", str(folder), "--model", str(model), "--batch-size", "4", "--max-new-tokens", "12"]
    assert main([*command, "--out", str(whole)]) == 1
    arguments = ["-m", "mindone_share4v", *command, "--out", str(out), "--replicas", "2"]
    job = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    journal = tmp_path / "out.jsonl.share4v" / "journal.jsonl"
    deadline, own = time.monotonic() + TIMEOUT, []
    while len(own) < 2 or not (journal.exists() and journal.stat().st_size):
        assert job.poll() is None and time.monotonic() < deadline
        own = own if len(own) == 2 else replicas_of(job.pid)
        time.sleep(0.02)
    job.kill()
    job.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in own):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert main([*command, "--out", str(out)]) == 1
    assert stable(out) == stable(whole)


def stable(path: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_an_error_of_a_replica_is_raised_as_here(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        list(executor(ReplicasExecutor, tmp_path / "missing", tmp_path, replicas=1).run(tasks_of(folder)))


def test_a_replica_that_dies_again_and_again_stops_the_job(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # so that Python itself does not start
    with pytest.raises(JobError, match=r"process 1 of the job ended with status 1, 3 times in a row.*--replicas"):
        list(executor(ReplicasExecutor, model, tmp_path, replicas=1).run(tasks_of(folder)))
    assert caplog.text.count("is started again") == 2


def test_only_a_converted_checkpoint_is_shared_and_captioned_in_replicas_by_itself(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindone.pipelines.image_to_text.dataset.executors import replicas

    monkeypatch.setattr(replicas, "usable_cores", lambda: [Core(0, (cpu,)) for cpu in range(32)])
    monkeypatch.setattr(replicas, "cpu_quota", lambda: None)
    assert shares_weights(ModelChoice(model=model)) and not shares_weights(ModelChoice())
    assert replica_count(ModelChoice(model=model), ExecutorOptions()) == 4
    assert replica_count(ModelChoice(model=model, numa="interleave"), ExecutorOptions()) == 1
    assert replica_count(ModelChoice(), ExecutorOptions()) == 1
    assert replica_count(ModelChoice(), ExecutorOptions(replicas=3)) == 3


@pytest.mark.parametrize(
    ("nodes", "quota", "count"),
    [
        ([0] * 2, None, 1),
        ([0] * 15, None, 1),
        ([0] * 16, None, 2),
        ([0] * 64, None, 8),
        ([0] * 12 + [1] * 12, None, 2),  # one for each socket
        ([0] * 64, 16.0, 2),
        ([0] * 64, 4.0, 1),
    ],
)
def test_the_automatic_number_follows_cores_sockets_and_quota(
    nodes: list[int], quota: float | None, count: int
) -> None:
    assert automatic_count([Core(node, (cpu,)) for cpu, node in enumerate(nodes)], quota) == count


@pytest.mark.parametrize(("cores", "count"), [(2, 2), (7, 3), (16, 2), (48, 6)])
def test_every_core_belongs_to_one_replica(cores: int, count: int) -> None:
    shares = shares_of(all_cores(cores), count)
    assert [core for share in shares for core in share] == all_cores(cores)
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("nodes", "count", "sizes"),
    [
        ((12, 8), 3, [6, 6, 8]),  # equal parts of all cores would give the second one cores of both nodes
        ((24, 4), 4, [8, 8, 8, 4]),
        ((3, 3, 2), 3, [3, 3, 2]),
        ((2, 2, 2, 2), 3, [2, 3, 3]),  # fewer than nodes
        ((1, 1), 2, [1, 1]),
    ],
)
def test_no_replica_has_cores_of_two_nodes_if_there_are_enough(
    nodes: tuple[int, ...], count: int, sizes: list[int]
) -> None:
    cores = [Core(node, (100 * node + cpu,)) for node, size in enumerate(nodes) for cpu in range(size)]
    shares = shares_of(cores, count)
    assert [len(share) for share in shares] == sizes and [core for share in shares for core in share] == cores
    if count >= len(nodes):
        assert all(len({core.node for core in share}) == 1 for share in shares)


@pytest.mark.parametrize(
    ("sizes", "count", "quota", "expected"),
    [
        ((16, 16, 16, 16), 2, 16.0, [{0}, {1}]),  # each got 8 threads on 32 cores of two nodes
        ((16, 16, 16, 16), 3, 24.0, [{0}, {1}, {2}]),
        ((4, 16, 4, 16), 2, 16.0, [{1}, {3}]),
        ((16, 16, 16, 16), 2, 40.0, [{0, 1}, {2, 3}]),  # 20 threads each, for which a node has too few cores
        ((16, 16, 16, 16), 2, None, [{0, 1}, {2, 3}]),
        ((16, 16), 3, 24.0, [{0}, {0}, {1}]),
    ],
)
def test_a_quota_does_not_spread_a_replica_over_nodes(
    sizes: tuple[int, ...], count: int, quota: float | None, expected: list[set[int]]
) -> None:
    cores = [Core(node, (100 * node + cpu,)) for node, size in enumerate(sizes) for cpu in range(size)]
    assert [{core.node for core in share} for share in shares_of(cores, count, quota)] == expected


def test_a_copy_for_each_node_needs_a_replica_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindone.pipelines.image_to_text.dataset.executors import replicas

    monkeypatch.setattr(replicas, "usable_cores", lambda: all_cores(8))  # of two nodes
    monkeypatch.setattr(replicas, "cpu_quota", lambda: None)
    assert replica_count(ModelChoice(numa="local"), ExecutorOptions()) == 2
    for count in (2, 5):
        check_count(count, "local")
    with pytest.raises(ValueError, match=r"each of the 2 NUMA nodes, but replicas \(--replicas\) is 1: use at least 2"):
        check_count(1, "local")
    check_count(1, "interleave")
    with pytest.raises(ValueError, match=r"numa 'interleave' is for one process.*replicas \(--replicas\) is 2"):
        check_count(2, "interleave")


def test_a_sandbox_that_forbids_pinning_does_not_stop_the_job(
    folder: Path,
    model: Path,
    local: dict[int, Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The replica was never given its settings, and both processes waited for ever."""

    def refuse(pid: int, cpus: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.sched_setaffinity", refuse)
    tasks = list(tasks_of(folder))[:8]
    with caplog.at_level(logging.WARNING):
        records = list(executor(ReplicasExecutor, model, tmp_path, replicas=1).run(tasks))
    assert by_number(records) == {task.item.number: local[task.item.number] for task in tasks}
    assert "process 1 of the job is not pinned to cores of its own" in caplog.text


def all_cores(count: int) -> list[Core]:
    return [Core(cpu * 2 // count, (cpu,)) for cpu in range(count)]


def test_the_backlog_waits_for_its_oldest_task_and_gives_returned_tasks_first() -> None:
    given = [Task(Item(number, str(number), f"{number}.png", {}), ("?",), (None,)) for number in range(9)]
    backlog = Backlog(given, ahead=3)
    taken = [backlog.take() for _ in range(4)]
    assert taken == [*given[:3], None]
    backlog.finish(Record(1, "1", "1.png"))
    assert backlog.take() is None  # the records after number 0 wait in memory
    backlog.give_back([given[2]])
    assert backlog.take() == given[2]
    backlog.finish(Record(0, "0", "0.png"))
    assert backlog.take() == given[3]
