"""The files behind a review: captions that are not UTF-8, journals that were replaced, and damaged reviews."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.dataset.review.index import Filter
from mindone.pipelines.image_to_text.dataset.review.publishing import publish
from mindone.pipelines.image_to_text.dataset.review.session import Change, ReviewSession
from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules
from mindone.pipelines.image_to_text.dataset.state.reviews import ReviewError, Reviews
from mindone.pipelines.image_to_text.dataset.writers.jsonl import JsonlWriter

LATIN_1 = "Un café à Paris".encode("latin-1")


def run(photos: Path, prompt: str = "A picture of {stem}", **options: Any) -> Path:
    out = photos.parent / "captions.jsonl"
    caption_dataset(photos, **{"out": str(out), "prompt": prompt, **options})
    return out


def edit(number: int, *texts: str) -> Change:
    return Change(number=number, verdict="edited", captions=texts)


def test_a_caption_that_is_not_utf_8_can_be_reviewed_as_it_is_shown(photos: Path) -> None:
    """It is accepted without a change of its bytes; an edit is what the person has seen and written."""
    for number in (0, 1, 2):
        (photos / f"{number}.txt").write_bytes(LATIN_1)
    run(photos, out=None, format="txt")
    with ReviewSession(photos) as session:
        for number, verdict in enumerate(("accepted", "rejected")):
            shown = json.loads(json.dumps(session.row(number), ensure_ascii=False).encode())["captions"]  # as UTF-8
            assert shown == ["Un caf\\xe9 \\xe0 Paris"]
            [row] = session.change([Change(number=number, verdict=verdict, shown=tuple(shown))])  # type: ignore[arg-type]
            assert (row["verdict"], row["captions"]) == (verdict, shown)
        [row] = session.change([Change(number=2, verdict="edited", captions=("Un café",), shown=tuple(shown))])
        assert row["captions"] == ["Un café"]
        publish(session.state)
    assert (photos / "0.txt").read_bytes().strip() == LATIN_1
    assert (photos / "2.txt").read_text("utf-8") == "Un café\n"


def test_of_several_captions_only_the_edited_one_changes_its_bytes(photos: Path) -> None:
    (photos / "0.txt").write_bytes(LATIN_1)
    run(photos, out=None, format="txt", existing="append", captions=2)
    with ReviewSession(photos) as session:
        first, second = session.row(0)["captions"]
        session.change([Change(number=0, verdict="edited", captions=(first, f"{second}!"), shown=(first, second))])
        publish(session.state)
    lines = (photos / "0.txt").read_bytes().splitlines()
    assert lines[0].startswith(LATIN_1) and lines[1].endswith(b"!") and b"\\xe9" in lines[1]


def replaced(path: Path, data: bytes) -> None:
    """Replace a file by another one; file systems that reuse inode numbers give it the one that was free first."""
    path.unlink()
    path.write_bytes(data)


def cut_and_extended(path: Path, data: bytes) -> None:
    """Change a file in place."""
    path.write_bytes(data)


@pytest.mark.parametrize("change", [replaced, cut_and_extended])
def test_another_journal_is_noticed_however_it_came(photos: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Also if it has the number and at least the size of the earlier one: device and inode do not identify a file."""
    out = run(photos)
    with ReviewSession(out) as session:
        before = session.listing
        journal = session.state / "journal.jsonl"
        data = journal.read_bytes().replace(b"A picture", b"A painting")
        status = os.fstat
        inode = journal.stat().st_ino

        def same_inode(descriptor: int) -> os.stat_result:
            """As the file system would report it after it has reused the inode."""
            found = status(descriptor)
            return os.stat_result((found.st_mode, inode, *found[2:]))

        change(journal, data)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", same_inode)
            numbers, rows = session.find(Filter(search="painting"))
            assert numbers == list(range(6)) and rows[5]["captions"] == ["A painting of 5"]
            assert session.listing != before


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"group": None}, "group must be a number from 0, got None"),
        ({"group": "1"}, "group must be a number"),
        ({"number": True}, "number must be a number"),
        ({"previous": -1}, "previous must be a number"),
        ({"previous": "itself"}, "previous must be the offset of an earlier line"),
        ({"previous": 10**9}, "previous must be the offset of an earlier line"),
        ({"captions": "text"}, "captions must be a list, got 'text'"),
        ({"captions": [1]}, "captions must be texts"),
        ({"generated": None}, "generated must be a list"),
        ({"key": 3}, "key must be a text"),
        ({"verdict": []}, "verdict must be one of"),
        ({"reviewer": None}, "reviewer must be a text"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_review_with_a_wrong_value_is_one_clear_error(tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    """No crash writes such a line, so it is neither followed in a loop nor cut off, also at the end."""
    path = tmp_path / "reviews.jsonl"
    blank = {"key": "0", "source": "0.png", "verdict": "edited", "captions": ["a"], "generated": ["b"], "number": 0}
    first = json.dumps({**blank, "group": 1}) + "\n"
    wrong = {**blank, "group": 2, **damage}
    if damage.get("previous") == "itself":
        wrong["previous"] = len(first)
    for last in ("", json.dumps({**blank, "group": 3}) + "\n"):
        path.write_text(first + json.dumps(wrong) + "\n" + last)
        with pytest.raises(ReviewError) as error:
            Reviews(path)
        assert f"byte {len(first)}: {message}" in str(error.value)
        assert "remove the lines from there" in str(error.value)


def test_a_replacement_that_would_fill_the_memory_is_refused(photos: Path) -> None:
    """100,000 letters, each replaced by 100,000, would be 10 GB."""
    run(photos)
    long = "a" * 100_000
    with ReviewSession(photos.parent / "captions.jsonl") as session:
        session.change([edit(0, long)])
        with pytest.raises(ValueError, match="a caption can have at most 100,000 characters"):
            session.replace([0, 1], "a", long)
        assert session.row(0)["captions"] == [long] and session.row(1)["verdict"] == "none"
        assert session.replace([0], "a", "b")[0]["captions"] == ["b" * 100_000]


def test_a_session_knows_the_rules_of_its_job(photos: Path) -> None:
    out = run(photos, require=["cat"], max_sentences=2)
    with ReviewSession(out) as session:
        assert session.rules() == TextRules(required_words=("cat",), max_sentences=2)
        with pytest.raises(ValueError, match=r"rules in the job's job\.json cannot be read"):
            session.rules("short")
    rules = ('{"later": 1}', '{"max_sentences": 0}', "[]")
    for damaged in ("[]", "{", '{"rules": {}}', *(f'{{"captions": {{"rules": {one}}}}}' for one in rules)):
        (session.state / "job.json").write_text(damaged)
        with ReviewSession(out) as session, pytest.raises(ValueError):
            session.rules()


def test_a_review_without_a_field_names_it(tmp_path: Path) -> None:
    (tmp_path / "reviews.jsonl").write_text('{"key": "0", "verdict": "accepted", "group": 1}\n')
    with pytest.raises(ReviewError, match="byte 0: a review has no source, number;"):
        Reviews(tmp_path / "reviews.jsonl")


def test_every_file_has_the_reviews_made_while_the_job_completed_its_outputs(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody rejects a caption while the job, which has written failed.jsonl, completes its last output."""
    out = photos.parent / "out"
    finish = JsonlWriter.finish
    made: list[object] = []

    def reviewed_meanwhile(self: JsonlWriter) -> Any:
        if not made:
            made.append(self)
            with ReviewSession(out) as session:
                session.change([Change(number=3, verdict="rejected"), edit(4, "By hand.")])
        return finish(self)

    monkeypatch.setattr(JsonlWriter, "finish", reviewed_meanwhile)
    summary = caption_dataset(photos, out=str(out), format=("txt", "jsonl"), prompt="A picture of {stem}")
    assert made and summary.failed == 1
    assert [row["key"] for row in lines_of(out / ".share4v" / "failed.jsonl")] == ["3"]
    assert [row["caption"] for row in lines_of(out / "captions.jsonl")][3:5] == [None, "By hand."]
    assert not (out / "3.txt").exists() and (out / "4.txt").read_text() == "By hand.\n"
