"""Passes over a job's inputs: repeated, with changed inputs, for failures, restarted; and killed at any step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.fake_executor import FakeExecutor

from mindone.pipelines.image_to_text.dataset import job
from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS
from mindone.pipelines.image_to_text.dataset.options import JobOptions
from mindone.pipelines.image_to_text.dataset.prompts.plan import PromptPlan
from mindone.pipelines.image_to_text.dataset.readers import InputError
from mindone.pipelines.image_to_text.dataset.state import resume
from mindone.pipelines.image_to_text.dataset.state.records import JobError, JobSummary


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(EXECUTORS, "local", "helpers.fake_executor:FakeExecutor")
    monkeypatch.setattr(job, "GROUP_RECORDS", 1)  # a kill loses at most the record in progress
    FakeExecutor.asked.clear()
    yield
    FakeExecutor.most = None


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_text(f"picture {number}")
    return folder


def run(
    inputs: Path | str | list[str], out: Path | None = None, *, prompt: str = "Describe", **more: object
) -> JobSummary:
    options = JobOptions(out=None if out is None else str(out), **more)
    FakeExecutor.asked.clear()
    return caption_dataset(inputs, plan=PromptPlan.from_options(prompts=[prompt]), options=options)


def killed_run(*arguments: object, after: int, **more: object) -> None:
    """Simulate that the process is killed before caption number `after`."""
    FakeExecutor.most = after
    with pytest.raises(KeyboardInterrupt):
        run(*arguments, **more)
    FakeExecutor.most = None


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.rglob("*.txt"))}


def test_only_new_inputs_are_captioned(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(photos, out)
    (photos / "00.png").write_text("new")  # sorts before all others
    (photos / "2.png").write_text("changed")  # inputs are identified by name
    summary = run(photos, out)
    assert FakeExecutor.asked == ["00"] and (summary.captioned, summary.tokens) == (1, 3)
    assert [row["key"] for row in lines(out)] == ["0", "00", "1", "2", "3", "4"]
    assert lines(out)[3]["caption"] == "picture 2 (Describe)"
    speed = [json.loads(line) for line in (tmp_path / "out.jsonl.share4v" / "speed.jsonl").read_text().splitlines()]
    assert sum(row["records"] for row in speed) == 6  # 5 and 1, not 5 and 6


@pytest.mark.parametrize("format_name", ["txt", "jsonl"])
def test_captions_of_missing_inputs_are_not_lost(photos: Path, tmp_path: Path, format_name: str) -> None:
    out = tmp_path / ("texts" if format_name == "txt" else "out.jsonl")
    run(photos, out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"}
    (photos / "3.png").rename(tmp_path / "3.png")
    with pytest.raises(JobError, match=r"1 inputs that have captions no longer exist, the first: .*3\.png"):
        run(photos, out)
    for path in photos.iterdir():
        path.rename(tmp_path / path.name)  # as if a disk were not mounted
    with pytest.raises(JobError, match=r"5 inputs"):
        run(photos, out)
    assert {path: path.read_bytes() for path in before} == before
    for number in range(5):
        (tmp_path / f"{number}.png").rename(photos / f"{number}.png")
    assert run(photos, out).captioned == 0 and not FakeExecutor.asked


def test_a_failed_input_may_be_deleted(photos: Path, tmp_path: Path) -> None:
    (photos / "1.png").write_text("broken")
    out = tmp_path / "out.jsonl"
    assert run(photos, out).failed == 1
    (photos / "1.png").unlink()
    assert run(photos, out).failed == 0 and not FakeExecutor.asked
    assert [row["key"] for row in lines(out)] == ["0", "2", "3", "4"]


def test_an_empty_folder_is_an_error_until_an_image_is_added(photos: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="contain no images"):
        run(empty, tmp_path / "out.jsonl")
    (empty / "1.png").write_text("at last")
    assert run(empty, tmp_path / "out.jsonl").captioned == 1


def test_captions_that_users_wrote_or_edited_are_kept(photos: Path) -> None:
    (photos / "1.png").write_text("broken")
    run(photos)
    (photos / "0.txt").write_text("mine")
    (photos / "1.txt").write_text("by hand")
    summary = run(photos, retry_failed=True)
    assert not FakeExecutor.asked and summary.kept == 1
    assert texts(photos)["0.txt"] == "mine" and texts(photos)["1.txt"] == "by hand"
    assert texts(photos)["2.txt"] == "picture 2 (Describe)\n"


def test_failures_remain_until_they_are_retried(photos: Path, tmp_path: Path) -> None:
    (photos / "1.png").write_text("broken")
    out = tmp_path / "out.jsonl"
    run(photos, out)
    (photos / "9.png").write_text("new")
    assert run(photos, out).failed == 1 and FakeExecutor.asked == ["9"]
    (photos / "1.png").write_text("repaired")
    assert run(photos, out, retry_failed=True).failed == 0 and FakeExecutor.asked == ["1"]
    assert lines(out)[1]["caption"] == "repaired (Describe)"


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append", "prepend"])
def test_restart_ignores_captions_that_the_job_wrote(photos: Path, existing: str) -> None:
    (photos / "2.txt").write_text("mine")
    killed_run(photos, after=3, existing=existing)
    with pytest.raises(JobError, match=r"\(prompt was 'Describe', now 'What is it\?'\).* add restart"):
        run(photos, prompt="What is it?", existing=existing)
    killed_run(photos, prompt="What is it?", existing=existing, restart=True, after=2)
    run(photos, prompt="What is it?", existing=existing, restart=True)
    assert len(FakeExecutor.asked) <= 3  # it resumed instead of restarting again
    joined = {
        "skip": "mine",
        "overwrite": "picture 2 (What is it?)\n",
        "append": "mine picture 2 (What is it?)\n",
        "prepend": "picture 2 (What is it?) mine\n",
    }
    expected = {f"{number}.txt": f"picture {number} (What is it?)\n" for number in range(5)}
    found = texts(photos)
    assert " ".join(found.pop("2.txt").split()) == " ".join(joined[existing].split())
    assert found == {name: text for name, text in expected.items() if name != "2.txt"}


def test_a_finished_restart_can_be_repeated(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for _ in range(2):
        assert run(photos, out, restart=True).captioned == 5 and len(FakeExecutor.asked) == 5


# The other formats resume as one of these does: rows appended as in JSONL, or a file written when the job is done.
@pytest.mark.parametrize("format_name", ["caption", "imagefolder", "jsonl", "txt", "webdataset"])
@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("mode", ["retry", "grown", "restart"])
def test_killed_at_any_step_of_a_new_pass(
    photos: Path, tmp_path: Path, mode: str, step: int, format_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill at any step, running the same command gives the result of a run that was never killed."""
    (photos / "1.png").write_text("broken")
    out, more = tmp_path / ("out.jsonl" if format_name == "jsonl" else "out"), {"formats": (format_name,)}
    run(photos, out, **more)
    (photos / "1.png").write_text("picture 1")
    if mode == "grown":
        (photos / "9.png").write_text("picture 9")
    flags = {"retry": {"retry_failed": True}, "grown": {}, "restart": {"restart": True}}[mode]
    count = 0

    def kill_at_step(function):  # type: ignore[no-untyped-def]
        def wrapper(*arguments, **named):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            if count == step + 1:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return wrapper

    with monkeypatch.context() as patch:
        for name in ("publish", "write_listing"):
            patch.setattr(resume, name, kill_at_step(getattr(resume, name)))
        with suppress(KeyboardInterrupt):
            run(photos, out, **more, **flags)
    run(photos, out, **more, **flags)
    expected = tmp_path / ("expected.jsonl" if format_name == "jsonl" else "expected")
    if mode == "grown":
        (photos / "1.png").write_text("broken")  # failures are not retried
    run(photos, expected, **more)
    assert content(out) == content(expected)


def content(path: Path) -> object:
    if path.is_file():
        return lines(path)
    return {
        str(one.relative_to(path)): one.read_bytes()
        for one in path.rglob("*")
        if one.is_file() and ".share4v" not in str(one)
    }


def test_the_state_of_an_output_directory_with_a_dot_in_its_name(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "caps-1.0"
    killed_run(photos, out, after=2, formats=("txt",))
    run(photos, out, formats=("txt",))
    assert len(FakeExecutor.asked) <= 4
    assert [path.name for path in tmp_path.glob("caps*")] == ["caps-1.0"]


def test_a_folder_of_tables_that_contains_the_output_is_one_data_set(photos: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    tables = tmp_path / "tables"
    tables.mkdir()
    for number in range(2):
        rows = {"image": [str(photos / f"{number}.png"), str(photos / f"{number + 2}.png")]}
        pandas.DataFrame(rows).to_parquet(tables / f"{number}.parquet")
    for name in ("captions.jsonl", "captioned/captions.jsonl"):
        for _ in range(2):
            summary = run(tables, tables / name)
            assert (summary.inputs, summary.failed) == (4, 0)


def test_an_output_that_is_an_input_is_rejected(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.jsonl"
    table.write_text(json.dumps({"image": str(photos / "0.png")}) + "\n")
    before = table.read_bytes()
    with pytest.raises(ValueError, match="both an input and the output"):
        run(table, tmp_path, formats=("jsonl",))
    assert table.read_bytes() == before


def test_the_progress_of_another_output_does_not_permit_overwriting(photos: Path, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    run(photos, tmp_path / "one", formats=("webdataset",), state=state)
    other = tmp_path / "other"
    other.mkdir()
    (other / "shard-00000.tar").write_bytes(b"somebody else's")
    with pytest.raises(ValueError, match="already exists, and this job did not write it"):
        run(photos, other, formats=("webdataset",), state=state, restart=True)
    assert (other / "shard-00000.tar").read_bytes() == b"somebody else's"


def test_a_pattern_is_one_input(photos: Path) -> None:
    run(str(photos / "*.png"))
    assert len(texts(photos)) == 5 and (photos / ".share4v").is_dir()


def test_contradictory_flags_are_rejected() -> None:
    with pytest.raises(ValueError, match="cannot be combined"):
        replace(JobOptions(restart=True), retry_failed=True)
