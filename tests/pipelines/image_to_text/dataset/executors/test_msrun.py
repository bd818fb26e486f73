"""Ranks under a real msrun, and processes with its environment: a shared job loses no caption if one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.pictures import shared_by_copies, write_folder, write_near_copies
from helpers.ports import free_port
from helpers.warm_processes import warm_python

from mindone.pipelines.image_to_text.dataset.executors.ranks import Rank, current_rank

COUNT, DUPLICATES, BROKEN, COPIES = 160, 6, 20, 6
TIMEOUT = 600.0  # seconds after which a hanging process fails the test


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # msrun calls `python`
    return {**os.environ, "PATH": path, "GLOG_v": "3", "OMP_NUM_THREADS": "1", **more}


def command(folder: Path, out: Path) -> list[str]:
    flags = ["--out", str(out), "--batch-size", "4", "--near-equal", "once"]
    return ["-m", "mindone_share4v", "caption-dataset", str(folder), *flags]


def start_rank(folder: Path, out: Path, rank: int, count: int) -> subprocess.Popen[str]:
    """Start a process with the environment variables that msrun sets."""
    own = {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), "MS_WORKER_NUM": str(count), "DEVICE_ID": str(rank)}
    arguments = [sys.executable, *command(folder, out)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment(**own))


def msrun(folder: Path, out: Path, place: Path) -> subprocess.Popen[str]:
    program = str(Path(sys.executable).with_name("msrun"))
    options = ["--worker_num=2", "--local_worker_num=2", f"--master_port={free_port()}", "--join=True"]
    place.mkdir(exist_ok=True)
    return subprocess.Popen(
        [program, *options, f"--log_dir={place / 'log'}", "python", *command(folder, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=place,
    )


def stable(path: Path) -> list[dict[str, object]]:
    """Return the records without the fields that differ from run to run."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition; fail if the process ends before."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.poll()
        time.sleep(0.02)


@contextmanager
def first_rank_stopped(
    queue: Path, text: str, process: subprocess.Popen[str], first: Callable[[], int]
) -> Iterator[None]:
    """Stop the first rank once it has published the job, until the second has written `text`.

    A first rank that keeps running could finish everything before the second, on a busy machine, has started.
    """
    wait_until(lambda: any(queue.glob("*/next")), process)
    (run,) = (path.parent for path in queue.glob("*/next"))
    pid = first()
    try:
        # The others need this lock to claim tasks: a rank that is stopped must not hold it.
        with FileLock(run / "claims.lock", timeout=TIMEOUT):
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: state_of(pid) == "T", process)
        wait_until(lambda: any(text in found.read_text() for found in queue.glob("*/records-1.jsonl")), process)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def state_of(pid: int) -> str:
    """Return the state of a process as Linux names it, such as R, S or T (stopped)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("msrun") / "photos"
    write_folder(place, COUNT, broken=True, duplicates=DUPLICATES)
    write_near_copies(place)
    return place


@pytest.fixture(scope="module")
def local(folder: Path) -> list[dict[str, object]]:
    out = folder.with_name("local.jsonl")
    done = subprocess.run([warm_python(), *command(folder, out)], capture_output=True, text=True, env=environment())
    assert done.returncode == 1, done.stderr
    records = stable(out)
    assert len(records) == COUNT + DUPLICATES + BROKEN + COPIES
    shared = shared_by_copies(records)  # from the first in the list, be it the copy or the original
    assert shared["part0/scene0000"] == "again0000.bmp" and "again/again0000" not in shared
    assert shared["small/small0003"] == "scene0003.png"
    return records


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_job_under_msrun_resumes_after_a_rank_was_killed(
    folder: Path, local: list[dict[str, object]], tmp_path: Path
) -> None:
    out, place = tmp_path / "out.jsonl", tmp_path / "run"
    broken = msrun(folder, out, place)
    queue = tmp_path / "out.jsonl.share4v" / "queue"
    with first_rank_stopped(queue, '"key"', broken, lambda: rank_process(broken.pid, 0)):
        os.kill(rank_process(broken.pid, 1), signal.SIGKILL)
    output, _ = broken.communicate(timeout=TIMEOUT)
    assert broken.returncode != 0, output  # msrun kills all of them
    done = msrun(folder, out, place)
    output, _ = done.communicate(timeout=TIMEOUT)
    logs = [path.read_text() for path in sorted((place / "log").glob("worker_*.log"))]
    assert done.returncode == 0, (output, logs)
    assert stable(out) == local
    assert " inputs in this process: " in logs[1]


def rank_process(parent: int, rank: int) -> int:
    """Return the id of the process that msrun started as a rank."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                own = (place / "environ").read_bytes().split(b"\0")
                stat = (place / "stat").read_text()
            except OSError:
                continue
            if f"MS_NODE_ID={rank}".encode() in own and int(stat.rpartition(")")[2].split()[1]) == parent:
                return int(place.name)
    raise AssertionError(f"no process of rank {rank}")


def test_the_leader_captions_what_a_dead_rank_had_claimed(
    folder: Path, local: list[dict[str, object]], tmp_path: Path, ended: list[subprocess.Popen[str]]
) -> None:
    """As on hosts with separate msrun commands, which do not kill each other's processes."""
    out = tmp_path / "out.jsonl"
    second = start_rank(folder, out, 1, 2)  # before the leader, for which it waits
    ended.append(second)
    first = start_rank(folder, out, 0, 2)
    ended.append(first)
    queue = tmp_path / "out.jsonl.share4v" / "queue"
    with first_rank_stopped(queue, '"block"', first, lambda: first.pid):
        second.send_signal(signal.SIGKILL)
    _, said = first.communicate(timeout=TIMEOUT)
    assert first.returncode == 0, said
    assert stable(out) == local
    assert not queue.exists()


def test_when_the_leader_dies_the_others_stop_and_the_job_can_be_resumed(
    folder: Path, local: list[dict[str, object]], tmp_path: Path, ended: list[subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out.jsonl"
    first, second = (start_rank(folder, out, rank, 2) for rank in range(2))
    ended += first, second
    queue = tmp_path / "out.jsonl.share4v" / "queue"
    with first_rank_stopped(queue, '"block"', first, lambda: first.pid):
        first.send_signal(signal.SIGKILL)
    _, said = second.communicate(timeout=TIMEOUT)
    assert second.returncode == 3 and "run the job again to resume it" in said and "Traceback" not in said
    done = subprocess.run([warm_python(), *command(folder, out)], capture_output=True, text=True, env=environment())
    assert done.returncode == 1, done.stderr
    assert stable(out) == local
    assert not queue.exists()


def test_the_current_rank() -> None:
    assert current_rank({}) is None
    assert current_rank({"RANK_ID": "1", "RANK_SIZE": "2"}) is None  # from another launcher
    worker = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "4", "MS_NODE_ID": "2", "DEVICE_ID": "0", "RANK_ID": "0"}
    assert current_rank(worker) == Rank(2, 4, 0)
    scheduler = current_rank({"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "4", "RANK_ID": "0"})
    assert scheduler is not None and scheduler.is_scheduler
    with pytest.raises(ValueError, match="--node_rank"):
        current_rank({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "4", "RANK_ID": "0"})


def test_the_engine_msrun_is_rejected_outside_msrun(folder: Path, tmp_path: Path) -> None:
    arguments = [*command(folder, tmp_path / "out.jsonl"), "--engine", "msrun"]
    done = subprocess.run([warm_python(), *arguments], capture_output=True, text=True, env=environment())
    assert done.returncode == 2 and "msrun started" in done.stderr and "Traceback" not in done.stderr
