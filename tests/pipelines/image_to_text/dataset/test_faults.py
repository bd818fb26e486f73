"""Captions that break a rule after all attempts: kept or failed, counted, and written by a retry with other rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import png

from mindone.pipelines.image_to_text import JobOptions, JobSummary, TextRules, caption_dataset
from mindone.pipelines.image_to_text.dataset.report.summary import summarize
from mindone.pipelines.image_to_text.dataset.rules.phrase_lists import PHRASE_LISTS, find_phrase
from mindone.pipelines.image_to_text.dataset.rules.text_rules import violations
from mindone.pipelines.image_to_text.dataset.state.job_description import SettingsChangedError
from mindone_share4v.cli import main

NOTE = "required word missing: unicorn"
PROMPT = "A {stem}. {note|}"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three images, of which the answers about two have a note that a rule is broken."""
    rows = []
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        rows.append({"file": f"{number}.png", "note": f"note: {NOTE}" if number else ""})
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(table: Path, **options: Any) -> JobSummary:
    settings = {"out": table.parent / "out.jsonl", "prompt": PROMPT, "require": "unicorn", **options}
    return caption_dataset(table, **settings)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("echo_executor")
def test_captions_that_break_a_rule_are_counted_either_way(table: Path) -> None:
    kept = run(table)
    assert (kept.captioned, kept.failed, kept.breaking_rules) == (3, 0, 2)
    assert all(row["caption"] for row in lines(table.parent / "out.jsonl"))
    found = summarize(Path(kept.state))
    assert (found.breaking_rules, found.rejected, found.failed) == (2, 0, 0)
    failed = run(table, on_fault="fail", out=table.parent / "strict.jsonl")
    assert (failed.captioned, failed.failed, failed.breaking_rules) == (1, 2, 2)
    found = summarize(Path(failed.state))
    assert (found.breaking_rules, found.rejected, found.failed) == (2, 2, 2)
    rows = lines(table.parent / "strict.jsonl")
    assert [row["caption"] is None for row in rows] == [False, True, True]
    assert rows[1]["error"] == f"breaks a rule: {NOTE}" and "unicorn" not in str(rows[1]["captions"])
    listed = lines(Path(failed.state) / "failed.jsonl")
    assert [row["rejected"] for row in listed] == [[f"A {n}. note: {NOTE}"] for n in (1, 2)]
    assert all(NOTE in row["error"] for row in listed)


@pytest.mark.usefixtures("echo_executor")
@pytest.mark.parametrize("change", [{"on_fault": "keep"}, {"attempts": 1, "require": "cat", "on_fault": "keep"}])
def test_a_retry_with_other_rules_writes_them(table: Path, change: dict[str, Any]) -> None:
    run(table, on_fault="fail")
    before = lines(table.parent / "out.jsonl")
    with pytest.raises(SettingsChangedError, match="add retry_failed"):
        run(table, **{"on_fault": "fail", **change})
    options = {**change, "retry_failed": True}
    summary = run(table, **options)
    rows = lines(table.parent / "out.jsonl")
    assert (summary.failed, summary.captioned) == (0, 2) and all(row["caption"] for row in rows)
    assert rows[0] == before[0]
    assert run(table, **{**options, "retry_failed": False}).captioned == 0  # these are the job's settings now
    with pytest.raises(SettingsChangedError, match="prompt was"):  # only rules may differ
        run(table, **{**options, "prompt": "Another"})


@pytest.mark.usefixtures("echo_executor")
def test_a_restart_leaves_no_caption_file_of_an_input_that_fails_now(table: Path) -> None:
    folder = table.parent
    (folder / "1.txt").write_text("from a person\n")
    settings: dict[str, Any] = {"prompt": "A {stem}.", "existing": "overwrite", "include": "*.png"}
    caption_dataset(folder, **settings)
    assert {path.name: path.read_text() for path in folder.glob("?.txt")} == {f"{n}.txt": f"A {n}.\n" for n in range(3)}
    (folder / "2.txt").write_text("edited\n")
    broken = {**settings, "prompt": f"note: {NOTE}", "require": "unicorn", "on_fault": "fail"}
    assert caption_dataset(folder, restart=True, **broken).failed == 3
    # What the job had replaced is there again, and what somebody edited stays.
    assert {path.name: path.read_text() for path in folder.glob("?.txt")} == {
        "1.txt": "from a person\n",
        "2.txt": "edited\n",
    }


def test_the_tiny_model_is_asked_again_with_other_rules_and_the_exit_status_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(number))
    out = tmp_path / "out"
    command = ["caption-dataset", str(tmp_path / "photos"), "--out", str(out), "--max-new-tokens", "8"]
    strict = [*command, "--require", "unicorn", "--attempts", "2", "--on-fault", "fail"]
    assert main(strict) == 1 and not list(out.glob("*.txt"))
    printed = capsys.readouterr().err
    assert "breaks a rule: required word missing: unicorn" in printed
    assert (
        "share4v: 2 inputs with captions that break a rule after all attempts; --on-fault fail has not written them"
        in printed
    )
    assert main([*strict, "--retry-failed"]) == 1  # the same rules give the same captions
    assert main(strict[:-2]) == 3 and "--retry-failed" in capsys.readouterr().err
    assert main([*command, "--attempts", "2", "--retry-failed"]) == 0
    assert len(list(out.glob("*.txt"))) == 2 and not (out / ".share4v" / "failed.jsonl").read_text()


REFUSALS = (
    "I'm sorry, but I cannot assist with that request.",
    "I\u2019m really sorry, I can\u2019t help with identifying people.",
    "Unfortunately, I am unable to view the image.",
    "I apologize, but there seems to be no image.",
    "As an AI, I do not have the ability to see.",
    "I cannot directly see images. Please provide an image.",
    "A poster. The image does not contain any imaginary content, and all descriptions are based on the visible content "
    "of the image.",
)
DESCRIPTIONS = (
    'A sign on the door says "Sorry, we are closed".',
    "A robot, as an aid, carries a box.",
    "A man who cannot see holds a white cane; a dog assists him.",
    "An apology is written on the card in blue ink.",
    "The descriptions in the catalogue are based on the seller's words.",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_found(text: str) -> None:
    assert violations(text, TextRules(forbidden_words=("@refusals",)))[0].startswith("forbidden by @refusals: ")


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_descriptions_are_no_refusals(text: str) -> None:
    assert find_phrase(text, "@refusals") is None


def test_lists_are_checked_in_captions_and_not_kept_from_being_generated() -> None:
    rules = TextRules(forbidden_words=("red", "@refusals"))
    assert rules.ungenerated_words == ("red",)
    with pytest.raises(ValueError, match=r"Did you mean '?@refusals"):
        TextRules(forbidden_words=("@refusal",))
    with pytest.raises(ValueError, match="on_fault"):
        JobOptions(on_fault="drop")


def test_list_rules_shows_the_phrases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption-dataset", "--list-rules"]) == 0
    printed = capsys.readouterr().out
    assert "--forbid @refusals" in printed and all(phrase in printed for phrase in PHRASE_LISTS["refusals"].phrases)
