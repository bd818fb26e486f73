"""The status of a job: while it runs, stopped, finished; from Python and from the command."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import png, write_photos

from mindone.pipelines.image_to_text import JobStatus, caption_dataset, job_status
from mindone.pipelines.image_to_text.dataset.report.report import ReportError
from mindone.pipelines.image_to_text.dataset.review.session import Change, ReviewSession
from mindone.pipelines.image_to_text.dataset.state.records import Record, to_line
from mindone_share4v.cli import main

pytestmark = pytest.mark.usefixtures("echo_executor")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", ("0", "1", "2-fail", "3-fail", "4"))


def caption(photos: Path, **options: Any) -> Path:
    out = photos.parent / "out.jsonl"
    caption_dataset(photos, out=out, **{"prompt": "What is it?", **options})
    return out


def test_a_job_is_running_then_stopped_then_finished(photos: Path) -> None:
    seen: list[JobStatus] = []
    (photos / "3-fail.png").rename(photos / "3-stop.png")
    with pytest.raises(OSError, match="switched off"):
        caption(photos, on_record=lambda record: seen.append(job_status(photos.parent / "out.jsonl")))
    assert {(one.state, one.total) for one in seen} == {("running", 5)}
    out = photos.parent / "out.jsonl"
    stopped = job_status(out)
    assert (stopped.state, stopped.seconds_left) == ("stopped", None) and stopped.done <= 3
    (photos / "3-stop.png").rename(photos / "3-fail.png")
    caption(photos, restart=True)
    finished = job_status(out)
    assert (finished.state, finished.done, finished.total, finished.failed) == ("finished", 5, 5, 2)
    assert finished.failures == {"it cannot be read": 2} and finished.seconds_left == 0
    assert job_status(out.with_name("out.jsonl.share4v")) == finished
    (photos / "5.png").write_bytes(png(5))  # more inputs: the same command continues
    caption(photos, on_start=lambda done, total: seen.append(job_status(out)))
    assert seen[-1].state == "running" and job_status(out).done == 6


def test_an_output_that_is_not_complete_is_not_finished(photos: Path) -> None:
    out = caption(photos)
    progress = out.with_name("out.jsonl.share4v") / "output-jsonl.json"
    stored = json.loads(progress.read_text())
    for broken in ({**stored, "closed": False}, {**stored, "seen": 3}, {}):
        progress.write_text(json.dumps(broken))
        assert job_status(out).state == "stopped"


def test_rate_and_time_left_are_those_of_the_last_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "out.share4v"
    state.mkdir()
    (state / "inputs.jsonl").write_text("{}\n" * 100)
    lines = [to_line(Record(n, str(n), str(n), ("A cat.",))) for n in range(40)]
    (state / "journal.jsonl").write_text("".join(lines) + lines[0][:20])  # the last line is being written
    speed = [(0, 0), (50, 50), (0, 0), (300, 3000), (400, 20), (200, 10)]  # seconds, records; 0 starts a run
    (state / "speed.jsonl").write_text(
        "".join(json.dumps({"at": 1, "seconds": s, "records": n, "tokens": n}) + "\n" for s, n in speed)
    )
    status = job_status(tmp_path / "out")
    assert (status.done, status.total, status.rate, status.seconds_left) == (40, 100, 0.05, None)
    monkeypatch.setattr("mindone.pipelines.image_to_text.dataset.report.status.is_locked", lambda lock: True)
    assert job_status(tmp_path / "out").seconds_left == 60 / 0.05


def test_failures_are_told_from_texts_that_look_like_one(tmp_path: Path) -> None:
    state = tmp_path / "out.share4v"
    state.mkdir()
    records = [
        Record(0, '"error":"k', 's"error":null', ('a "error":"x" \\"error":"y"',), columns={"error": "bad"}),
        Record(1, "key1", "photo1.png", error="broken at byte 17", columns={"error": None}),
        Record(2, "key2", "photo2.png", error="broken at byte 4242", columns={"x": '"error":null'}),
    ]
    (state / "journal.jsonl").write_text("".join(map(to_line, records)))
    status = job_status(state)
    assert (status.done, status.failed, status.failures) == (3, 2, {"broken at byte #": 2})
    (state / "journal.jsonl").write_text('{"error":7}\n')
    with pytest.raises(ValueError, match=r"line 1: not a record"):
        job_status(state)


def test_the_counts_are_those_of_the_summary(photos: Path) -> None:
    """Inputs that fail for want of a template's value, or by a person are in the journal as captions."""
    table = photos.parent / "table.jsonl"
    rows = [{"image": f"photos/{path.name}", "who": "Ann" if "1" in path.name else ""} for path in photos.iterdir()]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = photos.parent / "out.jsonl"
    summary = caption_dataset(table, out=out, prompt="What is it?", template="by {who}, {caption}")
    status = job_status(out)
    assert (summary.inputs, summary.failed) == (5, 4) == (status.total, status.failed)
    assert status.failures["it cannot be read"] == 2
    with closing(ReviewSession(out.with_name("out.jsonl.share4v"))) as session:
        number = next(n for n, row in enumerate(rows) if row["who"])
        session.change([Change(number=number, verdict="rejected", captions=())])
    assert job_status(out).failed == 5


def test_a_job_that_lists_its_inputs(tmp_path: Path) -> None:
    (tmp_path / "out.share4v").mkdir()
    (tmp_path / "out.share4v" / "lock").touch()
    assert (job_status(tmp_path / "out").done, job_status(tmp_path / "out").total) == (0, None)
    with pytest.raises(ReportError, match="give the --out or --state"):
        job_status(tmp_path)


def test_the_command_prints_one_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = caption(photos)
    assert main(["status", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and json.loads(lines[0]) == job_status(out).to_json()
    assert main(["status", str(photos / "none")]) == 2 and "share4v: error: no journal" in capsys.readouterr().err
