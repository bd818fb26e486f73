"""The caption template: in every output and nowhere else, changed without the model, and beside what people wrote."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.echo_executor import EchoExecutor
from helpers.jobs import png, tree, write_photos

from mindone.pipelines.image_to_text import JobSummary, WriterOptions, caption_dataset
from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS
from mindone.pipelines.image_to_text.dataset.review.publishing import publish
from mindone.pipelines.image_to_text.dataset.review.session import Change, ReviewSession
from mindone.pipelines.image_to_text.dataset.state.job_description import SettingsChangedError
from mindone.pipelines.image_to_text.dataset.state.records import Record
from mindone.pipelines.image_to_text.dataset.state.tasks import Task
from mindone_share4v.cli import main

FORMATS = ("jsonl", "parquet", "txt", "caption", "webdataset", "open-sora-csv")
PROMPT = "A picture of {stem}"


class Counting(EchoExecutor):
    """Counts how often a model would have been loaded."""

    started = 0

    def __init__(self, **arguments: Any) -> None:
        Counting.started += 1
        super().__init__(**arguments)


class OnlyBeginning(EchoExecutor):
    """Adds nothing to the forced beginning."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        for record in super().run(tasks):
            yield replace(record, captions=("sks,",))


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXECUTORS, "local", f"{__name__}:Counting")
    monkeypatch.setattr(Counting, "started", 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", 3)


def run(photos: Path, template: str | None, **options: Any) -> JobSummary:
    settings = {"out": photos.parent / "out", "format": FORMATS, "prompt": PROMPT, **options}
    return caption_dataset(photos, template=template, **settings)


def captions(out: Path) -> dict[str, list[str | None]]:
    """The captions in every output of `out`, in order: format -> captions; None for an input without one."""
    import pyarrow.parquet

    shard = next(out.glob("*.tar"))
    with tarfile.open(shard) as archive:
        shards = [
            archive.extractfile(member).read().decode().strip()  # type: ignore[union-attr]
            for member in archive
            if member.name.endswith(".txt")
        ]
    table = (out / "open_sora.csv").read_text().splitlines()[1:]
    return {
        "jsonl": [json.loads(line)["caption"] for line in (out / "captions.jsonl").read_text().splitlines()],
        "parquet": [row["caption"] for row in pyarrow.parquet.read_table(sorted(out.glob("part-*"))).to_pylist()],
        "txt": [path.read_text().strip() for path in sorted(out.glob("*.txt"))],
        "caption": [path.read_text().strip() for path in sorted(out.glob("*.caption"))],
        "webdataset": shards,
        "open-sora-csv": [line.split('"')[1] if '"' in line else line.split(",")[1] for line in table],
    }


def outputs(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(out).items() if not name.startswith(".share4v")}


def test_every_output_has_the_template_and_another_one_needs_no_model(photos: Path) -> None:
    out = photos.parent / "out"
    run(photos, "sks, {caption}")
    for name, found in captions(out).items():
        assert found == [f"sks, A picture of {number}" for number in range(3)], name
    journal = (out / ".share4v" / "journal.jsonl").read_bytes()
    assert b"sks" not in journal and Counting.started == 1
    before = outputs(out)
    run(photos, "{stem}: {caption} ({{zwx}})")
    for name, found in captions(out).items():
        assert found == [f"{number}: A picture of {number} ({{zwx}})" for number in range(3)], name
    run(photos, None)
    assert set(map(tuple, captions(out).values())) == {tuple(f"A picture of {number}" for number in range(3))}
    run(photos, "sks, {caption}")
    assert outputs(out) == before and Counting.started == 1
    assert (out / ".share4v" / "journal.jsonl").read_bytes() == journal
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.*")}
    run(photos, "sks, {caption}")  # nothing changed, so nothing is written
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.txt")}.items() <= stamps.items()


def test_columns_of_a_table_are_variables_and_caption_is_the_new_one(photos: Path) -> None:
    table = photos.parent / "table.jsonl"
    rows = [{"file": f"photos/{n}.png", "tags": ["red", "round"], "who": "" if n == 1 else "Ann"} for n in range(3)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = photos.parent / "named.jsonl"
    options: dict[str, Any] = {"out": out, "prompt": "A ball", "image_column": "file"}
    caption_dataset(table, template="{who|nobody}: {caption}, {tags}", **options)
    found = [json.loads(line)["caption"] for line in out.read_text().splitlines()]
    assert found == ["Ann: A ball, red, round", "nobody: A ball, red, round", "Ann: A ball, red, round"]
    # A value that one input lacks fails that input alone, in every output and in failed.jsonl; the caption stays.
    summary = caption_dataset(table, template="{who}: {caption}", **options)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert summary.failed == 1 and [row["caption"] for row in rows] == ["Ann: A ball", None, "Ann: A ball"]
    failed = (Path(summary.state) / "failed.jsonl").read_text()
    assert "the template: record" in rows[1]["error"] and "{who} is empty there" in failed
    assert caption_dataset(table, template="sks, {caption}", **options).failed == 0 and Counting.started == 1
    for template in ("{wo}: {caption}", "{caption} {nobody}"):  # found out before anything is written
        with pytest.raises(ValueError, match=r"the template .*variable"):
            caption_dataset(table, template=template, **options)
    assert "sks, A ball" in out.read_text()


@pytest.mark.parametrize("template", ["sks", "sks, {", "{captoin}", ""])
def test_a_template_without_the_caption_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        WriterOptions(template=template)


def test_an_empty_answer_is_an_error(photos: Path) -> None:
    summary = run(photos, "sks, {caption}", prompt="silent")
    assert (summary.captioned, summary.failed) == (0, 3)
    lines = (photos.parent / "out" / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in lines] == [None] * 3 and not list(photos.parent.glob("out/*.txt"))
    assert "the model's answer is empty" in (Path(summary.state) / "failed.jsonl").read_text()


def test_an_answer_that_is_only_the_forced_beginning_is_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXECUTORS, "local", f"{__name__}:OnlyBeginning")
    assert run(photos, None, begin_with="sks, ").failed == 3


def test_files_beside_images_follow_a_new_template_but_not_those_that_people_edited(photos: Path) -> None:
    (photos / "2.txt").write_text("By hand.")
    here: dict[str, Any] = {"out": None, "format": "txt"}
    run(photos, "sks, {caption}", **here)
    assert (photos / "2.txt").read_text() == "By hand."  # an existing caption is a finished text
    (photos / "1.txt").write_text("sks, A person edited this.")
    summary = run(photos, "zwx, {caption}", **here)
    assert [(photos / f"{number}.txt").read_text() for number in range(3)] == [
        "zwx, A picture of 0\n",
        "sks, A person edited this.",
        "By hand.",
    ]
    assert len(summary.left_out) == 1 and "1.txt has another text" in summary.left_out[0]
    (photos / "1.txt").unlink()
    (photos / "3.png").write_bytes(png(3))  # a later pass takes the job's own captions for its own
    run(photos, "zwx, {caption}", **here)
    run(photos, "zwx, {caption}", **here, prompt="Another picture of {stem}", restart=True)
    found = [(photos / f"{number}.txt").read_text().strip() for number in range(4)]
    assert found == [f"zwx, Another picture of {n}" for n in (0, 1)] + ["By hand.", "zwx, Another picture of 3"]


def test_a_template_change_that_was_killed_is_completed_with_a_third_template(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindone.pipelines.image_to_text.dataset.writers import sidecars

    run(photos, "a {caption}", format="txt")
    monkeypatch.setattr(sidecars, "_GROUP", 1)
    renamed = sidecars.rename_own

    def killed(partial: Path, path: Path) -> None:
        renamed(partial, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(sidecars, "rename_own", killed)
    with pytest.raises(KeyboardInterrupt):
        run(photos, "b {caption}", format="txt")
    monkeypatch.setattr(sidecars, "rename_own", renamed)
    texts = [(photos.parent / "out" / f"{number}.txt").read_text()[:1] for number in range(3)]
    assert sorted(texts) == ["a", "a", "b"]
    assert not run(photos, "c {caption}", format="txt").left_out
    assert [(photos.parent / "out" / f"{n}.txt").read_text()[:1] for n in range(3)] == ["c"] * 3


@pytest.mark.parametrize(("existing", "expected"), [("append", "sks, Old. New"), ("prepend", "sks, New Old.")])
def test_a_combined_caption_is_put_into_the_template_once(photos: Path, existing: str, expected: str) -> None:
    (photos / "0.txt").write_text("Old.")
    here: dict[str, Any] = {"out": None, "format": "txt", "existing": existing, "prompt": "New"}
    for options in ({}, {}, {"restart": True}):  # the job recognizes its own text, with the template
        run(photos, "sks, {caption}", **here, **options)
        assert (photos / "0.txt").read_text().strip() == expected
    run(photos, None, **here)
    assert (photos / "0.txt").read_text().strip() == expected.removeprefix("sks, ")


def test_what_people_edited_in_a_review_is_put_into_the_template_except_what_existed(photos: Path) -> None:
    out = photos.parent / "out"
    out.mkdir()
    (out / "2.txt").write_text("sks, by hand")
    run(photos, "sks, {caption}")
    with ReviewSession(out) as session:
        assert session.row(0)["captions"] == ["A picture of 0"]  # reviewers see captions without the template
        session.change([Change(number=0, verdict="edited", captions=("A dog.",)), Change(number=1, verdict="accepted")])
        session.change([Change(number=2, verdict="edited", captions=("sks, by hand, too",))])
        publish(session.state)
        expected = ["sks, A dog.", "sks, A picture of 1", "sks, by hand, too"]
        assert set(map(tuple, captions(out).values())) == {tuple(expected)}
        session.change([Change(number=2, verdict="regenerated", captions=("A cat.",))])  # the model wrote this one
        publish(session.state)
        assert captions(out)["jsonl"] == captions(out)["txt"] == [*expected[:2], "sks, A cat."]
    run(photos, "zwx, {caption}")
    assert captions(out)["jsonl"] == captions(out)["txt"] == ["zwx, A dog.", "zwx, A picture of 1", "zwx, A cat."]
    with ReviewSession(out) as session:
        session.change([Change(number=0, verdict="rejected")])
        publish(session.state)
    assert captions(out)["txt"] == ["zwx, A picture of 1", "zwx, A cat."] and Counting.started == 1


def test_other_settings_are_still_refused_and_the_command_has_the_flag(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(photos, "sks, {caption}")
    with pytest.raises(SettingsChangedError, match="prompt was"):
        run(photos, "zwx, {caption}", prompt="Another")
    assert captions(photos.parent / "out")["txt"][0] == "sks, A picture of 0"
    command = ["caption-dataset", str(photos), "--out", str(photos.parent / "cli.jsonl"), "--prompt", "Describe"]
    assert main([*command, "--template", "sks"]) == 2
    assert "--template must contain {caption}" in capsys.readouterr().err
    assert main([*command, "--template", "sks, {caption}"]) == 0
    assert '"caption":"sks, Describe"' in (photos.parent / "cli.jsonl").read_text()
