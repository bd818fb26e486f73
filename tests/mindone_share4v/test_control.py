"""Control over a job before and while it runs: braces and variables, --limit, --dry-run, and the summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.echo_executor import EchoExecutor
from helpers.jobs import tree, write_photos

from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.dataset.state.records import JobSummary
from mindone.pipelines.image_to_text.dataset.state.skipped import SkippedGroup
from mindone_share4v.cli import main
from mindone_share4v.commands.dataset_summary import preview_lines, summary_lines

pytestmark = pytest.mark.usefixtures("echo_executor")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_photos(tmp_path / "photos", 6)


def run(*arguments: str) -> int:
    return main(["caption-dataset", *arguments])


def captions(path: str) -> list[str]:
    return [json.loads(line)["caption"] for line in Path(path).read_text(encoding="utf-8").splitlines()]


# Braces and variables


@pytest.mark.parametrize(
    ("flag", "text", "explanation"),
    [
        ("--prompt", "A {red|blue} car?", "{red|blue}, which stands for the value of 'red', or for 'blue' where an"),
        ("--prompt", "A {red|blue} car?", "double each of them: 'A {{red|blue}} car?'"),
        ("--prompt", "A {red|blue} car?", "give --prompt several times"),
        ("--prompt", 'As {"a": 1}', 'contains {"a": 1}, but braces enclose the name of a variable: {filename}, {stem}'),
        ("--prompt", 'As {"a": {"b": 1}}', 'double each of them: \'As {{"a": {{"b": 1}}}}\''),
        ("--begin-with", "{red|blue}", "--begin-with '{red|blue}' contains {red|blue}"),
        ("--begin-with", "{", "--begin-with '{' has a lone '{'"),
        ("--begin-with", "{artst}", "unknown variable {artst}"),
    ],
)
def test_braces_are_explained(
    photos: Path, flag: str, text: str, explanation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("photos", flag, text) == 2
    assert explanation in capsys.readouterr().err
    assert not (photos / ".share4v").exists()


def test_doubled_braces_are_text(photos: Path) -> None:
    assert run("photos", "--out", "out.jsonl", "--prompt", 'Answer as {{"{{stem}}": "{stem}"}}') == 0
    assert captions("out.jsonl")[1] == 'Answer as {"{stem}": "1"}'


def test_a_default_may_stand_for_a_column_of_later_rows(photos: Path) -> None:
    """JSON lines list no columns at their start: a column that only row 1,001 has is no mistake."""
    rows: list[dict[str, Any]] = [{"image": "photos/0.png", "key": n, **({"a": 1} if n else {})} for n in range(1001)]
    rows[-1]["mood"] = "calm"
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("rows.jsonl", "--out", "out.jsonl", "--prompt", "A {mood|plain} one") == 0
    assert captions("out.jsonl")[-2:] == ["A plain one", "A calm one"]


def test_variables_in_a_forced_beginning(photos: Path) -> None:
    Path("table.csv").write_text("image,artist\nphotos/0.png,Klee\nphotos/1.png,\nphotos/2.png,<image>\n")
    begin = ["--begin-with", "By {artist|somebody}, {{1922}}:"]
    assert run("table.csv", "--out", "out.jsonl", "--prompt", "What?", *begin) == 1
    assert captions("out.jsonl") == ["By Klee, {1922}: What?", "By somebody, {1922}: What?", None]
    (failed,) = map(json.loads, Path("out.jsonl.share4v/failed.jsonl").read_text().splitlines())
    assert "contains <image>" in failed["error"]


# --limit


def test_a_limit_is_continued_without_it(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["photos", "--out", "out.jsonl", "--prompt", "{stem}"]
    assert run(*command, "--limit", "2") == 0
    assert captions("out.jsonl") == ["0", "1"]
    assert "--limit 2: further inputs are untouched" in capsys.readouterr().err
    assert run(*command, "--limit", "1") == 0  # nothing is dropped
    assert captions("out.jsonl") == ["0", "1"]
    assert run(*command, "--limit", "4") == 0
    assert captions("out.jsonl") == ["0", "1", "2", "3"] and " 2 captioned" in capsys.readouterr().err
    assert run(*command) == 0
    error = capsys.readouterr().err
    assert captions("out.jsonl") == [str(n) for n in range(6)] and " 2 captioned" in error and "--limit" not in error
    whole = Path("out.jsonl").read_bytes()
    assert run("photos", "--out", "whole.jsonl", "--prompt", "{stem}") == 0
    assert whole == Path("whole.jsonl").read_bytes()


@pytest.mark.parametrize("limits", [[None, "3"], ["5", None], ["2", "5", "3", None]])
def test_a_stopped_job_accepts_another_limit(photos: Path, limits: list[str | None]) -> None:
    """A run that was stopped in any pass is continued by one with another limit, or without one."""
    (photos / "3-stop.png").write_bytes(b"")
    command = ["photos", "--out", "out.jsonl", "--prompt", "{stem}"]
    for limit in limits[:-1]:
        status = run(*command, *([] if limit is None else ["--limit", limit]))
        assert status == (3 if limit in (None, "5") else 0)
    (photos / "3-stop.png").unlink()
    last = limits[-1]
    assert run(*command, *([] if last is None else ["--limit", last])) == 0
    assert captions("out.jsonl") == [str(n) for n in range(6)][: None if last is None else int(last)]


def test_a_limit_of_inputs_that_were_added_in_front(photos: Path) -> None:
    assert run("photos", "--limit", "2", "--prompt", "{stem}") == 0
    (photos / "00.png").write_bytes(b"")
    assert run("photos", "--limit", "2", "--prompt", "{stem}") == 0
    assert sorted(path.stem for path in photos.glob("*.txt")) == ["0", "00", "1"]


def test_a_restart_with_a_limit_drops_the_other_records(photos: Path) -> None:
    command = ["photos", "--out", "out.jsonl"]
    assert run(*command, "--prompt", "{stem}") == 0
    assert run(*command, "--prompt", "again {stem}", "--restart", "--limit", "2") == 0
    assert captions("out.jsonl") == ["again 0", "again 1"]


@pytest.mark.parametrize("limit", ["0", "-3"])
def test_a_limit_below_one(photos: Path, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("photos", "--limit", limit) == 2
    assert f"--limit must be an integer of at least 1, got {limit}" in capsys.readouterr().err


# --dry-run


def test_a_dry_run_writes_nothing_and_says_what_would_be_done(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "1.txt").write_text("mine")
    before = tree(photos.parent)
    assert run("photos", "--prompt", "What is {stem}?", "--begin-with", "In {directory}", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "dry run: nothing was written, no image was opened and no model was loaded",
        "5 inputs would be captioned",
        "1 input keeps its caption (see --existing)",
        f"would write a .txt file beside each image; the job's journal is in {photos}/.share4v",
        "the inputs:",
        "  photos/0.png: What is 0?, beginning with 'In photos'",
        "  photos/1.png: keeps its caption",
        *(f"  photos/{n}.png: What is {n}?, beginning with 'In photos'" for n in range(2, 6)),
    ]
    assert err == "" and tree(photos.parent) == before and not (photos / ".share4v").exists()


def test_a_dry_run_shows_the_beginnings_of_texts_and_what_it_cannot_know(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.toml").write_text(
        'begin-with = "A"\n[texts.long]\nprompt = "What is {stem}?"\n'
        '[texts.short]\nprompt = "Shorten {long}"\nbegin-with = "In {stem}"\n'
    )
    assert run("photos/0.png", "--out", "o.jsonl", "--config", "job.toml", "--near-equal", "note", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("long: What is 0?, beginning with 'A' | short: Shorten {long}, beginning with 'In 0'")
    [said] = [line for line in lines if "--near-equal" in line]
    assert said == (
        "--near-equal note: the job first reads all images and compares them, which a dry run does not do; the records "
        "of those that nearly equal an earlier one get a note"
    )
    caption_dataset("photos/0.png", out="o.jsonl", prompt="Why?")
    summary = caption_dataset("photos/0.png", out="o.jsonl", prompt="Why?", dry_run=True)
    assert summary.preview is not None and summary.preview.unknown == ()


def test_a_dry_run_of_a_job_that_has_records(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "1-fail.png").write_bytes(b"")
    command = ["photos", "--out", "out.jsonl", "--prompt", "{stem}"]
    assert run(*command, "--limit", "3") == 1
    before = tree(photos.parent)
    capsys.readouterr()
    assert run(*command, "--limit", "4", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["1 input would be captioned", "3 inputs have results of an earlier run"]
    assert f"would write out.jsonl; the job's journal is in {photos.parent}/out.jsonl.share4v" in lines
    assert "  photos/1-fail.png: failed before (--retry-failed tries it again): it cannot be read" in lines
    assert run(*command, "--retry-failed", "--dry-run") == 0
    assert "1 input that failed would be captioned again" in capsys.readouterr().out
    assert run(*command, "--restart", "--dry-run") == 0
    assert "7 inputs would be captioned" in capsys.readouterr().out
    assert run("photos", "--out", "out.jsonl", "--prompt", "other", "--dry-run") == 3
    assert "--prompt was '{stem}', now 'other'" in capsys.readouterr().err
    assert tree(photos.parent) == before


def test_a_dry_run_of_own_captions_beside_images(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After --restart, the job's own .txt files do not count as captions of people."""
    assert run("photos", "--prompt", "{stem}") == 0
    (photos / "3.txt").write_text("mine")
    capsys.readouterr()
    assert run("photos", "--prompt", "again", "--restart", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "5 inputs would be captioned" in out and "1 input keeps its caption" in out
    assert run("photos", "--prompt", "again", "--restart") == 0
    assert " 5 captioned" in capsys.readouterr().err and (photos / "3.txt").read_text() == "mine"


def test_limit_and_dry_run_in_python(photos: Path) -> None:
    summary = caption_dataset("photos", prompt="{stem}", out="out.jsonl", limit=2, dry_run=True)
    assert summary.preview is not None and summary.preview.actions == {"caption": 2} and summary.inputs == 2
    assert [shown.prompts for shown in summary.preview.first] == [("0",), ("1",)]
    assert caption_dataset("photos", prompt="{stem}", out="out.jsonl", limit=2).captioned == 2
    assert caption_dataset("photos", prompt="{stem}", out="out.jsonl").captioned == 4
    with pytest.raises(ValueError, match="limit must be an integer of at least 1, got 0"):
        caption_dataset("photos", limit=0)


# The summary


def test_what_was_skipped_is_a_line_of_the_summary() -> None:
    skipped = (SkippedGroup("no_extension", 2, ("a", "b")), SkippedGroup("hidden", 1, (".c",)))
    summary = JobSummary(3, 3, 0, 0, 1.0, 9, state="s", skipped=skipped)
    lines = list(summary_lines(summary, ["photos"], "out.jsonl", None))
    assert lines[1:3] == ["skipped files without an extension: 2 (a, b)", "skipped hidden files or folders: 1 (.c)"]
    assert list(preview_lines(summary)) == []


def test_what_is_skipped_is_known_from_a_dry_run_and_with_a_limit(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "0.xcf").write_bytes(b"")
    assert run("photos", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "0.xcf" in out and "skipped " in out and "include (" not in out
    assert run("photos", "--limit", "2", "--out", "out.jsonl") == 0
    assert run("photos", "--out", "out.jsonl") == 0
    assert "0.xcf" in capsys.readouterr().err.rpartition("6 inputs:")[2]


def test_a_resumed_job_counts_all_captions_that_break_rules(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "3-stop.png").write_bytes(b"")
    command = ["photos", "--prompt", "A {stem} note: required word missing"]
    assert run(*command) == 3
    assert "break a rule" not in capsys.readouterr().err
    (photos / "3-stop.png").write_bytes(b"")
    original = EchoExecutor.run
    with monkeypatch.context() as patch:
        patch.setattr(EchoExecutor, "run", lambda self, tasks: original(self, (_renamed(task) for task in tasks)))
        assert run(*command) == 0
    assert "7 inputs with captions that break a rule after all attempts" in capsys.readouterr().err


def _renamed(task: Any) -> Any:
    from dataclasses import replace

    return replace(task, item=replace(task.item, source=task.item.source.replace("stop", "go")))
