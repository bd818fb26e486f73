"""Undoing restores the state before an action, and only what nobody else has changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import png

from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.dataset.review.index import Filter, ReviewIndex
from mindone.pipelines.image_to_text.dataset.review.publishing import publish
from mindone.pipelines.image_to_text.dataset.review.session import Change, ConflictError, ReviewSession
from mindone.pipelines.image_to_text.dataset.state.records import Record


def run(photos: Path, prompt: str = "A picture of {stem}", **options: Any) -> Path:
    out = photos.parent / "captions.jsonl"
    caption_dataset(photos, out=str(out), prompt=prompt, **options)
    return out


def edit(number: int, text: str) -> Change:
    return Change(number=number, verdict="edited", captions=(text,))


def states(session: ReviewSession, *numbers: int) -> list[tuple[str, str]]:
    rows = [session.row(number) for number in numbers]
    return [(row["verdict"], row["captions"][0]) for row in rows]


def test_after_a_restart_it_rejects_nothing_that_nobody_rejected(photos: Path) -> None:
    """A rejection is about the caption that was generated then, also if an undo brings it back."""
    out = run(photos)
    with ReviewSession(out) as session:
        session.change([Change(number=0, verdict="rejected")])
        session.change([edit(0, "By hand.")])
    run(photos, "Another {stem}", restart=True)
    with ReviewSession(out) as session:
        assert states(session, 0) == [("edited", "By hand.")]
        session.undo()
        assert states(session, 0) == [("none", "Another 0")]
        assert publish(session.state) == []
    assert json.loads(out.read_text().splitlines()[0])["caption"] == "Another 0"
    run(photos, restart=True)  # generates the rejected caption again
    with ReviewSession(out) as session:
        assert states(session, 0) == [("rejected", "A picture of 0")]


def test_everyone_undoes_their_own_actions(photos: Path) -> None:
    out = run(photos)
    with ReviewSession(out) as session:
        session.change([edit(0, "Anna 0"), edit(1, "Anna 1")], reviewer="anna")
        session.change([edit(2, "Anna 2")], reviewer="anna")
        session.change([edit(1, "Ben 1"), edit(3, "Ben 3")], reviewer="ben")
        session.change([edit(4, "Anna 4")], reviewer="anna")
    with ReviewSession(out) as session:  # the list of what can be undone is in the file
        assert [row["number"] for row in session.undo("ben")] == [1, 3]
        assert states(session, 1, 4) == [("edited", "Anna 1"), ("edited", "Anna 4")]
        assert not session.status("ben")["can_undo"] and session.status("anna")["can_undo"]
        assert session.undo("ben") == []
        session.change([edit(1, "Ben again"), edit(4, "Ben 4")], reviewer="ben")
        with pytest.raises(ConflictError, match="changed by somebody else since"):
            session.undo("anna")
        assert states(session, 4) == [("edited", "Ben 4")]
        assert [row["number"] for row in session.undo("anna")] == [2]
        assert [row["number"] for row in session.undo("anna")] == [0]  # not 1, which is Ben's now
        assert states(session, 0, 1, 2) == [
            ("none", "A picture of 0"),
            ("edited", "Ben again"),
            ("none", "A picture of 2"),
        ]
        assert [row["number"] for row in session.undo()] == [1, 4]
        assert states(session, 1, 4) == [("edited", "Anna 1"), ("edited", "Anna 4")]


def test_many_undone_one_after_the_other_restore_each_state(photos: Path) -> None:
    with ReviewSession(run(photos)) as session:
        seen = []
        for step in range(6):
            seen.append(states(session, 0, 1))
            session.change(
                [Change(number=0, verdict="rejected" if step % 3 == 1 else "accepted"), edit(1, f"Step {step}")]
                if step % 2
                else [edit(0, f"Step {step}")]
            )
        for step in (5, 4, 3):
            session.undo()
            assert states(session, 0, 1) == seen[step]
        session.change([edit(1, "Another way")])
        for expected in (seen[3], seen[2], seen[1], seen[0]):
            session.undo()
            assert states(session, 0, 1) == expected
        assert session.undo() == []


def test_a_large_action_is_undone_in_one_pass_over_the_records(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if all inputs have other numbers since; counted, because the time depends on the machine."""
    for number in range(6, 60):
        (photos / f"{number}.png").write_bytes(png(number))
    out = run(photos)
    with ReviewSession(out) as session:
        numbers, _ = session.find(Filter())
        session.replace(numbers, "picture", "photo")
    (photos / "00.png").write_bytes(png(99))  # now the first one
    run(photos)
    read = []
    record = ReviewIndex.record

    def counted(self: ReviewIndex, number: int) -> Record:
        read.append(number)
        return record(self, number)

    monkeypatch.setattr(ReviewIndex, "record", counted)
    with ReviewSession(out) as session:
        rows = session.undo()
        assert len(rows) == 60 and all(row["captions"][0].startswith("A picture") for row in rows)
        assert len(read) < 4 * 60
