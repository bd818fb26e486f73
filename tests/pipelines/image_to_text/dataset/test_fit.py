"""Token budgets in a job: in every output, with the template, changed without the model, and in the report."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers.echo_executor import EchoExecutor
from helpers.jobs import tree, write_photos
from helpers.text_tokenizers import write_clip, write_t5

from mindone.pipelines.image_to_text import JobSummary, caption_dataset
from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS
from mindone.pipelines.image_to_text.dataset.report.report import write_report
from mindone.pipelines.image_to_text.dataset.review.publishing import publish
from mindone.pipelines.image_to_text.dataset.review.session import Change, ReviewSession
from mindone.pipelines.image_to_text.dataset.rules.encoder_tokenizer import load_token_counter
from mindone.pipelines.image_to_text.dataset.state.token_counts import read_token_counts
from mindone_share4v.cli import main

FORMATS = ("jsonl", "parquet", "txt", "csv", "json", "imagefolder", "open-sora-csv")
PARTS = ["A red cube.", "It is on a table.", "The background is light blue."]
PROMPT = " ".join(PARTS)  # the caption, as the executor repeats it
FULL, CUT = PROMPT, " ".join(PARTS[:2])


class Counting(EchoExecutor):
    """Counts how often a model would have been loaded."""

    started = 0

    def __init__(self, **arguments: Any) -> None:
        Counting.started += 1
        super().__init__(**arguments)


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXECUTORS, "local", f"{__name__}:Counting")
    monkeypatch.setattr(Counting, "started", 0)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return write_clip(folder / "clip"), write_t5(folder / "t5")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", 3)


def budget(tokenizer: Path, text: str) -> str:
    """The budget that a text just fits into."""
    return f"{tokenizer}:{load_token_counter(str(tokenizer))(text)}"


def run(photos: Path, *fit: str, **options: Any) -> JobSummary:
    settings = {"out": photos.parent / "out", "format": FORMATS, "prompt": PROMPT, **options}
    return caption_dataset(photos, fit=fit, **settings)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]


def captions(out: Path) -> dict[str, list[str]]:
    parquet = pq.read_table(sorted(out.glob("part-*"))).to_pylist()
    return {
        "jsonl": [row["caption"] for row in rows(out)],
        "parquet": [row["caption"] for row in parquet],
        "txt": [path.read_text().strip() for path in sorted(out.glob("*.txt"))],
        "csv": list(pd.read_csv(out / "captions.csv")["caption"]),
        "json": [row["caption"] for row in json.loads((out / "captions.json").read_text())],
        "imagefolder": [json.loads(line)["text"] for line in (out / "metadata.jsonl").read_text().splitlines()],
        "open-sora-csv": [row["caption"] for row in csv.DictReader((out / "open_sora.csv").open())],
    }


def test_every_output_fits_and_another_budget_needs_no_model(photos: Path, tokenizers: tuple[Path, Path]) -> None:
    out, (clip, _) = photos.parent / "out", tokenizers
    run(photos, budget(clip, f"sks, {CUT}"), template="sks, {caption}")
    assert all(found == [f"sks, {CUT}"] * 3 for found in captions(out).values()), captions(out)
    journal = (out / ".share4v" / "journal.jsonl").read_bytes()
    assert journal.count(FULL.encode()) >= 3  # nothing is lost
    before = {name: data for name, data in tree(out).items() if not name.startswith(".share4v")}
    # One token less, another template, no budget, and the same again.
    short = budget(clip, f"sks, {CUT}").rpartition(":")[2]
    run(photos, f"{clip}:{int(short) - 1}", template="sks, {caption}")
    assert all(found == [f"sks, {PARTS[0]}"] * 3 for found in captions(out).values())
    run(photos, budget(clip, f"sks, {CUT}"), template="sks, a very long one, {caption}")
    assert all(found == [f"sks, a very long one, {PARTS[0]}"] * 3 for found in captions(out).values())
    run(photos)
    assert all(found == [FULL] * 3 for found in captions(out).values())
    assert "text_tokens" not in rows(out)[0]
    run(photos, budget(clip, f"sks, {CUT}"), template="sks, {caption}")
    assert {name: data for name, data in tree(out).items() if not name.startswith(".share4v")} == before
    assert Counting.started == 1 and (out / ".share4v" / "journal.jsonl").read_bytes() == journal


def test_token_counts_are_in_the_records(photos: Path, tokenizers: tuple[Path, Path]) -> None:
    out, (clip, t5) = photos.parent / "out", tokenizers
    (photos / "1.txt").write_text(PROMPT)
    fit = (budget(t5, FULL), budget(clip, CUT))
    run(photos, *fit, captions=2, caption_root=photos)
    counts = {one: load_token_counter(one.rpartition(":")[0]) for one in fit}
    for row in rows(out):
        assert row["text_tokens"] == {one: [counts[one](text) for text in row["captions"]] for one in fit}
        assert row["uncut_tokens"] == {one: [counts[one](FULL)] * len(row["captions"]) for one in fit}
    kept = rows(out)[1]
    assert kept["captions"] == [FULL] and kept["notes"] == ["kept existing"]  # a person's text is never cut
    assert rows(out)[0]["captions"] == [CUT, CUT]
    parquet = pq.read_table(sorted(out.glob("part-*"))).to_pylist()
    assert [json.loads(row["text_tokens"]) for row in parquet] == [row["text_tokens"] for row in rows(out)]
    table = pd.read_csv(out / "captions.csv")
    assert [json.loads(cell) for cell in table["uncut_tokens"]] == [row["uncut_tokens"] for row in rows(out)]
    sora = pd.read_csv(out / "open_sora.csv")
    assert list(sora["text_len"]) == [counts[fit[0]](text) for text in sora["caption"]]  # the first budget
    counted = read_token_counts(out / ".share4v" / "token_counts.json")[fit[1]]
    assert (counted.captions, counted.cut, counted.over) == (5, 4, 1)


def test_without_a_budget_the_files_are_as_before(photos: Path) -> None:
    run(photos)
    out = photos.parent / "out"
    assert "text_len" not in (out / "open_sora.csv").read_text()
    assert not (out / ".share4v" / "token_counts.json").exists()
    assert "fit" not in json.loads((out / ".share4v" / "job.json").read_text())["sinks"]


def test_a_sentence_that_does_not_fit_is_counted_and_named(photos: Path, tokenizers: tuple[Path, Path]) -> None:
    out, (clip, _) = photos.parent / "out", tokenizers
    summary = run(photos, f"{clip}:6")
    assert summary.breaking_rules == 3 and summary.failed == 0
    length = load_token_counter(str(clip))(PARTS[0])
    assert rows(out)[0]["captions"] == [PARTS[0]]
    assert rows(out)[0]["notes"] == [f"{clip}:6: {length} tokens, although only one sentence is left"]


def test_it_is_rejected_until_the_budget_is_larger(photos: Path, tokenizers: tuple[Path, Path]) -> None:
    out, (clip, _) = photos.parent / "out", tokenizers
    summary = run(photos, f"{clip}:6", on_fault="fail")
    assert summary.failed == 3 and "although only one sentence is left" in rows(out)[0]["error"]
    assert rows(out)[0]["captions"] == [] and not list(out.glob("*.txt"))
    assert run(photos, f"{clip}:400", on_fault="fail", retry_failed=True).failed == 0
    assert all(found == [FULL] * 3 for found in captions(out).values())


def test_a_smaller_budget_rejects_what_no_longer_fits_and_a_larger_one_writes_it_again(
    photos: Path, tokenizers: tuple[Path, Path]
) -> None:
    out, (clip, _) = photos.parent / "out", tokenizers
    assert run(photos, f"{clip}:400", on_fault="fail").failed == 0
    summary = run(photos, f"{clip}:6", on_fault="fail")
    assert (summary.failed, summary.breaking_rules, Counting.started) == (3, 3, 1)
    assert "although only one sentence is left" in rows(out)[0]["error"] and not list(out.glob("*.txt"))
    assert all(row["caption"] is None for row in rows(out))
    with closing(ReviewSession(out)) as session:
        session.change([Change(number=0, verdict="edited", captions=(PARTS[0],))])  # a person's decision stands
    publish(out / ".share4v")
    assert [row["caption"] for row in rows(out)] == [PARTS[0], None, None]
    assert run(photos, f"{clip}:400", on_fault="fail").failed == 0 and Counting.started == 1
    assert [row["caption"] for row in rows(out)] == [PARTS[0], FULL, FULL]


def test_texts_of_people_are_known_beside_other_budgets(photos: Path, tokenizers: tuple[Path, Path]) -> None:
    """Caption files that the job cut are its own: another budget replaces them, and never one that was edited."""
    clip, _ = tokenizers
    options: dict[str, Any] = {"out": None, "format": "txt"}
    run(photos, budget(clip, PARTS[0]), **options)
    assert (photos / "0.txt").read_text() == PARTS[0] + "\n"
    (photos / "1.txt").write_text("By hand.")
    summary = run(photos, budget(clip, CUT), **options)
    assert [(photos / f"{n}.txt").read_text().strip() for n in range(3)] == [CUT, "By hand.", CUT]
    assert len(summary.left_out) == 1 and "1.txt has another text" in summary.left_out[0]
    run(photos, prompt="Something else.", restart=True, **options)
    found = [(photos / f"{n}.txt").read_text().strip() for n in range(3)]
    assert found == ["Something else.", "By hand.", "Something else."]


def test_a_reviewed_caption_fits_too(photos: Path, tokenizers: tuple[Path, Path]) -> None:
    out, (clip, _) = photos.parent / "out", tokenizers
    run(photos, budget(clip, CUT))
    with closing(ReviewSession(out)) as session:
        longer = "A red cube. It is on a table. It is on the background."
        session.change([Change(number=0, verdict="edited", captions=(longer,))])
    publish(out / ".share4v")
    assert [row["caption"] for row in rows(out)] == [CUT] * 3
    assert sum(read_token_counts(out / ".share4v" / "token_counts.json")[budget(clip, CUT)].tokens.values()) == 3


def test_the_report_shows_the_budgets(photos: Path, tokenizers: tuple[Path, Path]) -> None:
    out, (clip, t5) = photos.parent / "out", tokenizers
    run(photos, budget(clip, CUT), f"{t5}:300")
    path, summary = write_report(out)
    page = path.read_text()
    assert list(summary.budgets) == [budget(clip, CUT), f"{t5}:300"]
    assert f"Budget {budget(clip, CUT)}" in page and "100.0 % of the captions were cut to fit (3 of 3)" in page
    (out / ".share4v" / "token_counts.json").write_text('{"a:1": [')
    write_report(out)  # what is not a job's file is ignored


def test_mistakes_are_reported_before_anything_is_written(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos.parent / "new.jsonl"
    for fit, message in (
        ("clip", "error: --fit must be NAME_OR_DIR:N"),
        (f"{photos}:77", "has no tokenizer: expected tokenizer.json"),
        ("no_such:77", "there is no directory no_such"),
    ):
        assert main(["caption-dataset", str(photos), "--out", str(out), "--fit", fit]) == 2
        assert message in capsys.readouterr().err
    assert not list(photos.parent.glob("new*"))
