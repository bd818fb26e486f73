"""Messages, progress and exit status of `share4v caption-dataset`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.pictures import encoded, scene
from tqdm import tqdm

from mindone.pipelines.image_to_text.dataset import api
from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS
from mindone.pipelines.image_to_text.dataset.state.journal import JournalError
from mindone.pipelines.image_to_text.dataset.state.records import JobSummary, Record
from mindone_share4v.cli import main
from mindone_share4v.commands.caption_dataset import Progress


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(encoded(scene(number)))
    return tmp_path / "photos"


def command(photos: Path, *more: str) -> list[str]:
    out = photos.parent / "out.jsonl"
    return ["caption-dataset", str(photos), "--out", str(out), "--max-new-tokens", "3", *more]


@pytest.mark.parametrize(
    ("error", "has_records", "status", "said"),
    [
        (FileNotFoundError("gone"), False, 2, "error: gone"),
        (FileNotFoundError("gone"), True, 3, "stopped: gone"),
        (JournalError("damaged"), False, 3, "stopped: damaged"),
        (JournalError("damaged"), True, 3, "stopped: damaged"),
        (ImportError("install it"), True, 2, "error: install it"),
        (OSError("full"), False, 3, "stopped: full"),
    ],
)
def test_an_error_after_the_first_record_is_no_usage_error(
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    has_records: bool,
    status: int,
    said: str,
) -> None:
    def job(inputs: Any, *, on_start: Any, on_record: Any, **options: Any) -> JobSummary:
        on_start(0, 3)
        if has_records:
            on_record(Record(0, "a", "a.png", ("A cat.",)))
        raise error

    monkeypatch.setattr(api, "caption_dataset", job)
    assert main(command(photos)) == status
    assert said in capsys.readouterr().err


def test_a_damaged_journal_stops_the_job(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(photos)) == 0
    journal = photos.parent / "out.jsonl.share4v" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[2])
    capsys.readouterr()
    assert main(command(photos)) == 3
    assert "stopped: " in (said := capsys.readouterr().err) and "it is the record of number 2" in said


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (("--frames", "0"), 2, "error: --frames must be at least 1, got 0"),
        (("--frames", "-3"), 2, "error: --frames must be at least 1, got -3"),
        (("--restart", "--retry-failed"), 2, "error: --restart and --retry-failed cannot be combined"),
        (("--actors", "0", "--engine", "ray"), 2, "--actors must be an integer of at least 1, got 0"),
        (("--replicas", "0"), 2, "--replicas must be an integer of at least 1, got 0"),
        (("--replicas", "9999"), 2, "error: --replicas is 9999, but this process may use"),
        (("--replicas", "2", "--engine", "local"), 0, "note: --replicas has no effect with --engine local"),
        (("--actors", "2"), 0, "note: --actors have no effect without --engine ray"),
        (("--actors", "2", "--cpus", "1", "--engine", "local"), 0, "note: --actors and --cpus have no effect without"),
    ],
)
def test_arguments_that_are_rejected_or_have_no_effect(
    photos: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], status: int, said: str
) -> None:
    assert main(command(photos, *more)) == status
    assert said in capsys.readouterr().err


def test_a_number_of_replicas_that_is_none(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(command(photos, "--replicas", "few"))
    assert "error: --replicas must be a number or auto, got 'few'" in capsys.readouterr().err


def test_a_format_named_twice_is_written_once(photos: Path) -> None:
    assert main(command(photos, "--format", "jsonl", "--format", "jsonl")) == 0
    rows = [json.loads(line) for line in (photos.parent / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["caption"] for row in rows)


def test_progress_lines_without_a_terminal(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(photos)) == 0
    assert " of 3 inputs" not in capsys.readouterr().err  # a job of a few seconds prints none
    monkeypatch.setattr(Progress, "LINE_SECONDS", 0.0)
    assert main(command(photos, "--restart")) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if " of 3 inputs" in line]
    assert [line.partition(",")[0] for line in lines] == [f"share4v: {n} of 3 inputs" for n in (1, 2, 3)]
    assert all(" per second, " in line and line.endswith(" left") for line in lines)


def test_the_number_of_listed_inputs_is_reported(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list may have gigabytes, which take a while to write and to read again."""
    monkeypatch.setitem(EXECUTORS, "local", "helpers.fake_executor:FakeExecutor")
    for number in range(3):
        (photos / f"{number}.png").write_text("a caption")
    said: list[int] = []
    for run in range(3):
        said.clear()
        caption_dataset(photos, out=photos.parent / "out.jsonl", on_listing=said.append, dry_run=run == 0)
        # It is read again when it was made; a run that finds all inputs done reads it twice, and lists them again.
        assert said == [[1, 2, 3], [1, 2, 3, 3], [3, 3, 1, 2, 3]][run]


def test_progress_of_a_listing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress(tqdm(disable=True))
    for count in range(1, 200):
        clock[0] += 1.0
        progress.on_listing(count)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"share4v: listing: {count} inputs so far" for count in (60, 120, 180)]


def test_the_bar_counts_what_is_listed() -> None:
    with tqdm() as bar:
        progress = Progress(bar)
        progress.on_listing(5)
        progress.on_listing(9)
        assert bar.n == 9
        progress.on_listing(2)  # another pass
        assert bar.n == 2
        progress.on_start(0, 9)
        assert (bar.n, bar.total) == (0, 9)


def record(number: int, **more: Any) -> Record:
    return Record(number, str(number), f"{number}.png", tokens=(5,), seconds=1.0, **more)


def test_the_rate_is_of_what_this_run_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress(tqdm(disable=True))
    progress.on_start(1000, 30_000)
    for number in range(1000, 1190):
        progress.on_record(record(number, stands=True, error="an old one"))
    clock[0] += 59
    progress.on_record(record(1190))
    clock[0] += 1
    progress.on_record(record(1191))
    for number in range(1192, 1200):
        progress.on_record(record(number))
    clock[0] += 61
    progress.on_record(record(1200, stands=True))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "share4v: resuming after 1000 of 30000 inputs",
        "share4v: 1192 of 30000 inputs, 0.03 per second, 240:04:00 left",
        "share4v: 1201 of 30000 inputs, 0.08 per second, 96:47:47 left",
    ]
    assert progress.tokens == 50 and progress.failures == 0


def test_the_bar_of_a_terminal_has_the_same_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm() as bar:
        progress = Progress(bar)
        progress.on_start(1000, 2000)
        for number in range(1000, 1500):
            progress.on_record(record(number, stands=True))
        for number in range(1500, 1510):
            progress.on_record(record(number))
        assert (bar.n, bar.total, bar.n - bar.initial) == (1510, 2000, 10)
    assert "share4v: 1" not in capsys.readouterr().err


def test_failures_are_told_with_where_all_of_them_will_be(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(tqdm(disable=True))
    progress.on_start(0, 100)
    for number in range(40):
        progress.on_record(record(number, error="broken"))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 21 and said[0] == "share4v: 0.png: broken"
    assert said[-1] == "share4v: more inputs failed; failed.jsonl will list all of them when the job is done"
