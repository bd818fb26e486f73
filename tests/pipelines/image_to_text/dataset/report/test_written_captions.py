"""The report shows what the outputs have: reviewed captions in the job's wording, and the scores of share4v match."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from helpers.jobs import write_photos
from helpers.text_tokenizers import write_clip

from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.dataset.report.report import write_report
from mindone.pipelines.image_to_text.dataset.report.summary import summarize
from mindone.pipelines.image_to_text.dataset.review.session import Change, ReviewSession
from mindone.pipelines.image_to_text.dataset.rules.encoder_tokenizer import load_token_counter
from mindone.pipelines.image_to_text.evaluation.match_table import add_match

pytestmark = pytest.mark.usefixtures("echo_executor")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", 4)
    return tmp_path / "out"


def run(out: Path, **options: object) -> Path:
    settings = {"prompt": "A picture of {stem}. It is plain.", "format": ["jsonl", "csv", "parquet"], **options}
    caption_dataset(out.parent / "photos", out=out, **settings)
    return out / ".share4v"


def test_captions_are_reviewed_and_in_their_template(out: Path) -> None:
    state = run(out, template="sks, {caption}")
    edited = Change(number=1, verdict="edited", captions=("a dolphin",))
    with closing(ReviewSession(out)) as session:
        session.change([edited, Change(number=2, verdict="accepted")])
        session.change([Change(number=3, verdict="rejected", captions=())])
    summary = summarize(state, "sks")
    assert (summary.captions, summary.failed) == (3, 1)
    assert summary.reviewed == {"edited": 1, "accepted": 1, "rejected": 1}
    assert summary.audit.words.count("dolphin") == 1 and summary.audit.trigger is not None
    assert summary.audit.trigger.present == 3  # of those that are written
    assert {one.text for one in summary.sample.values()} == {
        "sks, A picture of 0. It is plain.",
        "sks, a dolphin",
        "sks, A picture of 2. It is plain.",
    }
    page = write_report(out)[0].read_text()
    assert "reviewed: 1 accepted, 1 edited, 1 rejected" in " ".join(page.split())


def test_captions_are_cut_to_their_budget(out: Path) -> None:
    clip = write_clip(out.parent / "clip")
    limit = load_token_counter(str(clip))("A picture of 3.")
    state = run(out, fit=f"{clip}:{limit}")
    assert {one.text for one in summarize(state).sample.values()} == {f"A picture of {n}." for n in range(4)}
    (state / "job.json").write_text((state / "job.json").read_text().replace('"seed": 0', '"seed": 1'))
    summary = summarize(state)  # somebody else's settings, which may name any file as a tokenizer
    assert "without the job's budgets" in summary.remarks[0]
    assert "It is plain." in summary.sample.values()[0].text
    assert summary.remarks[0][:24] in write_report(out)[0].read_text()


@pytest.mark.parametrize("table", ["captions.jsonl", "captions.csv"])
def test_scores_of_match_are_a_histogram(out: Path, table: str) -> None:
    state = run(out)
    assert summarize(state).match is None
    os.utime(out / table, (1e9, 1e9))
    scores = iter([21.5, 23.25, 23.75, 30.0])
    add_match(out / table, lambda images, texts: [next(scores) for _ in images])
    found = summarize(state).match
    assert found is not None and found.counts == {21: 1, 23: 2, 30: 1} and found.mean == 24.625
    assert not found.is_older and not found.missing
    page = " ".join(write_report(out)[0].read_text().split())
    assert "Match with the image" in page and "mean 24.62" in page and "before" not in page
    os.utime(out / table)
    os.utime(found.path, (1e9, 1e9))
    assert "The captions were written after these scores." in write_report(out)[0].read_text()
