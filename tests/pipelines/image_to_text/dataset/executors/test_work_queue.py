"""What the leader learns about the other ranks from the files in the work queue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mindone.pipelines.image_to_text.dataset.executors import msrun_leader, work_queue
from mindone.pipelines.image_to_text.dataset.executors.msrun_leader import OtherRanks
from mindone.pipelines.image_to_text.dataset.executors.work_queue import (
    WorkQueue,
    create_queue,
    find_queue,
    remove_queues,
)
from mindone.pipelines.image_to_text.dataset.state.records import Item, Record, to_line
from mindone.pipelines.image_to_text.dataset.state.tasks import Task, read_tasks


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[WorkQueue]:
    """A run with twelve tasks, of which rank 1 has claimed the first block."""
    with ExitStack() as stack:
        items = [Item(number, str(number), f"{number}.png") for number in range(12)]
        made, count = create_queue(tmp_path, [Task(item, ("What is there?",), (None,)) for item in items], stack)
        assert count == 12
        block = made.claim(made.records_path(1))
        assert block is not None and [task.item.number for task in read_tasks(made.tasks, block)] == list(range(8))
        yield made


def write(queue: WorkQueue, number: int) -> None:
    with queue.records_path(1).open("a", encoding="utf-8") as file:
        file.write(to_line(Record(number=number, key=str(number), source=f"{number}.png", captions=("A sun.",))))


def test_a_run_that_is_being_removed_is_none(queue: WorkQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that starts late sees the directory while its files go, in any order; an error would end all ranks."""
    removed = []

    def without_signature(path: Path, ignore_errors: bool) -> None:
        (queue.directory / "signature").unlink()
        removed.append((queue.exists, queue.has_leader, find_queue(tmp_path), queue.claim()))

    monkeypatch.setattr(work_queue.shutil, "rmtree", without_signature)
    remove_queues(tmp_path)
    assert removed == [(False, True, None, None)]


@pytest.mark.parametrize("read", ["next", "tasks.jsonl"])
def test_a_run_that_is_removed_within_a_claim_is_over(
    queue: WorkQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """An error would end the leader too, which is writing the outputs."""
    opened = work_queue.open_own

    def removed_then(path: Path, mode: str = "rb") -> Any:
        file = opened(path, mode)
        if path.name == read:
            remove_queues(tmp_path)
        return file

    monkeypatch.setattr(work_queue, "open_own", removed_then)
    assert queue.claim(queue.records_path(2)) is None


def test_a_file_that_a_run_lacks_is_an_error(queue: WorkQueue) -> None:
    queue.tasks.unlink()
    with pytest.raises(FileNotFoundError, match=r"tasks\.jsonl"):
        queue.claim()


def test_a_live_rank_keeps_its_claims(queue: WorkQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msrun_leader, "_LIVENESS_SECONDS", 0.0)
    others = OtherRanks(queue, [1])
    with FileLock(queue.lock_path(1)):
        write(queue, 3)
        assert [[record.number for record in others.poll()] for _ in range(3)] == [[3], [], []]
        assert others.have_claims and others.any_alive and not others.abandoned


@pytest.mark.parametrize("stuck", [False, True], ids=["dead", "stuck"])
def test_tasks_of_a_dead_or_stuck_rank_are_abandoned(
    queue: WorkQueue, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    """A rank that holds its lock but is silent for too long counts as stuck; its later records are ignored."""
    monkeypatch.setattr(msrun_leader, "_LIVENESS_SECONDS", 0.0)
    others = OtherRanks(queue, [1])
    with FileLock(queue.lock_path(1)) if stuck else ExitStack():
        write(queue, 0)
        write(queue, 5)
        if stuck:
            assert [record.number for record in others.poll()] == [0, 5] and not others.abandoned
            monkeypatch.setattr(msrun_leader, "_STUCK_SECONDS", 0.0)
            assert list(others.poll()) == []
        else:
            # A rank can be found dead only once its claim has been read.
            assert [[record.number for record in others.poll()] for _ in range(2)] == [[0, 5], []]
        assert [task.item.number for task in others.abandoned] == [1, 2, 3, 4, 6, 7]
        assert not others.have_claims and not others.any_alive
        write(queue, 1)
        assert list(others.poll()) == []
    block = queue.claim()  # the other tasks can still be claimed
    assert block is not None and block.count == 4
