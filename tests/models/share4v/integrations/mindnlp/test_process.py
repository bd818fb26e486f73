"""Running an object in a separate process: its errors and its end reach the caller, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.warm_processes import warm_children

from mindone.models.share4v.integrations.mindnlp.process import Worker, WorkerError

MODULE = """
import os, signal, sys, time
from mindone.models.share4v.integrations.mindnlp.process import serve


class Desk:
    def __init__(self):
        if os.environ.get("DESK_FAILS"):
            raise ImportError("no desk to be had")
        self.notes = []

    def add(self, array, by):
        print("this must not be seen")
        self.notes.append(by)
        return array + by

    def facts(self):
        return os.getpid(), sys.path, "torch" in sys.modules, self.notes

    def divide(self, by):
        return 1 // by

    def interrupt(self, seconds):
        owner = os.getppid()
        while open(f"/proc/{owner}/stat").read().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.01)  # until it waits for the answer
        os.killpg(owner, signal.SIGINT)  # its group, as a terminal does
        time.sleep(seconds)
        return "too late"

    def die(self):
        os._exit(3)


def main(descriptor):
    serve(descriptor, Desk)
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module `desk` can be imported."""
    (tmp_path / "desk.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def worker(desk: None) -> Iterator[Worker]:
    with warm_children():
        made = Worker("desk", "the desk")
    yield made
    made.close()


def test_arrays_go_in_and_come_out_of_another_process(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    array = np.arange(200_000, dtype=np.float32).reshape(2, -1)
    np.testing.assert_array_equal(worker.call("add", array, 5), array + 5)
    process, path, has_torch, notes = worker.call("facts")
    assert process != os.getpid() and path == sys.path and not has_torch and notes == [5]
    assert "this must not be seen" not in capfd.readouterr().out


def test_an_error_is_told_and_the_next_call_works(worker: Worker) -> None:
    line = MODULE.splitlines().index("        return 1 // by") + 1
    message = rf"error in the process of the desk: ZeroDivisionError: .*desk\.py, line {line}\)"
    with pytest.raises(WorkerError, match=message):
        worker.call("divide", 0)
    assert worker.call("divide", 1) == 1


def test_what_cannot_be_made_is_told_at_the_first_call(desk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_FAILS", "1")
    with pytest.raises(WorkerError, match="ImportError: no desk to be had"), warm_children():
        Worker("desk", "the desk").call("facts")


def test_a_process_that_dies_is_told_with_its_exit_code(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"the process of the desk has ended \(exit code 3;"):
        worker.call("die")
    with pytest.raises(WorkerError, match="has ended"):
        worker.call("facts")


INTERRUPTED = """
import signal
from mindone.models.share4v.integrations.mindnlp.process import Worker

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let programs in the background ignore it
worker = Worker("desk", "the desk")
process = worker.call("facts")[0]
try:
    worker.call("interrupt", 1)
except KeyboardInterrupt:
    print("interrupted", worker.call("facts")[0] == process, worker.call("divide", 1))
"""


def alone(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, at the head of a group: MindSpore may have put its own hand on signals in this one."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, start_new_session=True, check=False
    )


def test_an_interrupted_call_leaves_no_answer_for_the_next(desk: None, tmp_path: Path) -> None:
    done = alone(INTERRUPTED, tmp_path)
    assert done.stdout.strip() == "interrupted True 1", done.stderr


def test_calls_of_several_threads_do_not_mix(worker: Worker) -> None:
    results: dict[int, np.ndarray] = {}

    def add(number: int) -> None:
        for _ in range(20):
            results[number] = worker.call("add", np.full(1000, number), 1)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((array == number + 1).all() for number, array in results.items()) and len(results) == 4


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(process: int) -> bool:
    deadline = time.monotonic() + 300
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(process)


def test_the_process_ends_with_its_owner(desk: None, tmp_path: Path) -> None:
    other = Worker("desk", "the desk")
    process = other.call("facts")[0]
    assert is_alive(process)
    del other
    assert gone(process)
    code = (
        "from mindone.models.share4v.integrations.mindnlp.process import Worker; import os, sys\n"
        "worker = Worker('desk', 'the desk'); print(worker.call('facts')[0], flush=True); os.kill(os.getpid(), 9)"
    )
    killed = alone(code, tmp_path)
    assert killed.returncode == -9 and gone(int(killed.stdout))
