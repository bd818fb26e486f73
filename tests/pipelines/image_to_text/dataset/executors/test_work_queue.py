"""What the first of several ranks learns of the others from the files they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

from mindone.pipelines.image_to_text.dataset.executors import msrun_leader
from mindone.pipelines.image_to_text.dataset.executors.msrun_leader import _OtherRanks
from mindone.pipelines.image_to_text.dataset.executors.work_queue import WorkQueue, publish
from mindone.pipelines.image_to_text.dataset.state.records import Item, Record, to_line
from mindone.pipelines.image_to_text.dataset.state.tasks import Task, read_tasks


@pytest.fixture
def shares(tmp_path: Path) -> Iterator[WorkQueue]:
    """A run of twelve tasks, of which the second rank has taken the first block."""
    with ExitStack() as stack:
        items = [Item(number, str(number), f"{number}.png") for number in range(12)]
        made, count = publish(tmp_path, [Task(item, ("What is there?",), (None,)) for item in items], stack)
        assert count == 12
        block = made.claim(made.records(1))
        assert block is not None and [task.item.number for task in read_tasks(made.tasks, block)] == list(range(8))
        yield made


def write(shares: WorkQueue, number: int) -> None:
    with shares.records(1).open("a", encoding="utf-8") as file:
        file.write(to_line(Record(number=number, key=str(number), source=f"{number}.png", captions=("A sun.",))))


def test_a_rank_that_lives_keeps_what_it_took(shares: WorkQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msrun_leader, "_LOOK_FOR_LIFE", 0.0)
    others = _OtherRanks(shares, [1])
    with FileLock(shares.life(1)):
        write(shares, 3)
        assert [[record.number for record in others.look()] for _ in range(3)] == [[3], [], []]
        assert others.owe and others.live and not others.lost


@pytest.mark.parametrize("stuck", [False, True], ids=["dead", "stuck"])
def test_the_first_does_what_a_dead_or_a_stuck_one_leaves(
    shares: WorkQueue, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    """One that holds its lock and is silent for too long is given up; what it writes later is not taken twice."""
    monkeypatch.setattr(msrun_leader, "_LOOK_FOR_LIFE", 0.0)
    others = _OtherRanks(shares, [1])
    with FileLock(shares.life(1)) if stuck else ExitStack():
        write(shares, 0)
        write(shares, 5)
        if stuck:
            assert [record.number for record in others.look()] == [0, 5] and not others.lost
            monkeypatch.setattr(msrun_leader, "_STUCK", 0.0)
            assert list(others.look()) == []
        else:
            # Who took a block is found dead once the block is known.
            assert [[record.number for record in others.look()] for _ in range(2)] == [[0, 5], []]
        assert [task.item.number for task in others.lost] == [1, 2, 3, 4, 6, 7]
        assert not others.owe and not others.live
        write(shares, 1)
        assert list(others.look()) == []
    block = shares.claim()  # the next are there for all who live
    assert block is not None and block.count == 4
