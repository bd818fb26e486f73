"""A job says what it does not caption: when it starts, in its summary, in the report, and if nothing is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.fake_executor import FakeExecutor
from helpers.jobs import png, write_tar

from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS
from mindone.pipelines.image_to_text.dataset.readers import InputError
from mindone.pipelines.image_to_text.dataset.report.report import render
from mindone.pipelines.image_to_text.dataset.report.summary import summarize
from mindone.pipelines.image_to_text.dataset.state.skipped import SkippedGroup
from mindone_share4v.cli import main


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setitem(EXECUTORS, "local", "helpers.fake_executor:FakeExecutor")
    monkeypatch.chdir(tmp_path)
    FakeExecutor.asked.clear()
    yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("1.png", "2.png", "a.jxr", "b.hdp", ".hidden", "metadata.csv"):
        (folder / name).write_text(f"text of {name}")
    (folder / "caf\udce9.bpg").write_text("not UTF-8")
    return folder


GROUPS = (
    SkippedGroup("format", 3, ("photos/a.jxr", "photos/b.hdp", "photos/caf\udce9.bpg")),
    SkippedGroup("table", 1, ("photos/metadata.csv",)),
    SkippedGroup("hidden", 1, ("photos/.hidden",)),
)
NAMES = [
    r"skipped images or videos in formats that are not listed by default: 3 (photos/a.jxr, photos/b.hdp, "
    r"$'photos/caf\xe9.bpg')",
    "skipped tables beside images: 1 (photos/metadata.csv)",
    "skipped hidden files or folders: 1 (photos/.hidden)",
]


def test_the_start_the_summary_and_the_report_name_what_is_skipped(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    summary = caption_dataset("photos", out="out.jsonl", on_skipped=said.append)
    assert said == [GROUPS] and summary.skipped == GROUPS and summary.inputs == 2
    assert caption_dataset("photos", out="out.jsonl", on_skipped=said.append).skipped == GROUPS  # resumed
    assert summarize(Path("out.jsonl.share4v")).skipped == GROUPS
    assert "photos/a.jxr" in render(summarize(Path("out.jsonl.share4v")), {}, "out")
    assert main(["caption-dataset", "photos", "--out", "out.jsonl"]) == 0
    lines = [line.removeprefix("share4v: ") for line in capsys.readouterr().err.splitlines()]
    assert [line.partition("; ")[0] for line in lines[:3]] == NAMES
    assert lines[0].endswith("add --include '*' and --include '*.jxr' and --include '*.hdp' and --include '*.bpg'")
    assert [line for line in lines[3:] if line.startswith("skipped")] == NAMES  # and again in the summary


def test_the_error_about_no_images_names_what_there_is(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.png", "2.png"):
        (photos / name).unlink()
    with pytest.raises(InputError, match=r"the inputs contain no images: .*3 \(photos/a\.jxr, "):
        caption_dataset("photos", out="out.jsonl")
    assert main(["caption-dataset", "photos", "--out", "out.jsonl"]) == 2
    assert r"$'photos/caf\xe9.bpg')" in capsys.readouterr().err
    assert main(["caption-dataset", "photos", "--out", "out.jsonl", "--include", "*.jxr"]) == 0  # the advice works
    assert [json.loads(line)["key"] for line in Path("out.jsonl").read_text().splitlines()] == ["a"]


def test_archives_beside_images_do_not_stop_captions_beside_images(photos: Path) -> None:
    write_tar(photos / "backup.tar", [("x.png", png(1))])
    summary = caption_dataset("photos")
    assert summary.inputs == 2 and (photos / "1.txt").read_text().startswith("text of 1.png")
    assert summary.skipped[1] == SkippedGroup("inside", 1, ("photos/backup.tar",))


def test_a_caption_file_in_upper_case_is_kept_or_replaced_in_place(photos: Path) -> None:
    (photos / "1.TXT").write_text("Mine.")
    caption_dataset("photos")
    assert (photos / "1.TXT").read_text() == "Mine." and not (photos / "1.txt").exists()
    caption_dataset("photos", existing="append", restart=True)
    assert (photos / "1.TXT").read_text().startswith("Mine. text of 1.png") and not (photos / "1.txt").exists()


def test_a_job_of_an_older_version_is_resumed(photos: Path, tmp_path: Path) -> None:
    """Its settings lack the newer options, and it has no list of what was skipped."""
    FakeExecutor.most = 1
    with pytest.raises(KeyboardInterrupt):
        caption_dataset("photos", out="out.jsonl")
    FakeExecutor.most = None
    settings = json.loads(Path("out.jsonl.share4v/job.json").read_text())
    assert not {"own_outputs", "separate_files"} & settings["sources"].keys()
    Path("out.jsonl.share4v/skipped.json").unlink()
    assert caption_dataset("photos", out="out.jsonl").inputs == 2
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
