"""`share4v caption-dataset` after a mistake in the command: nothing is written, lost or blocked by it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from helpers.echo_executor import EchoExecutor
from helpers.jobs import tree, write_photos

from mindone.models.share4v.generation import grammar_trial
from mindone_share4v.cli import main

pytestmark = pytest.mark.usefixtures("echo_executor")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_photos(tmp_path / "photos", 3)


def run(*arguments: str) -> int:
    return main(["caption-dataset", *arguments])


def captions(path: Path) -> list[str]:
    return [json.loads(line)["caption"] for line in path.read_text(encoding="utf-8").splitlines()]


MISTAKES = [
    (["--model", "nonexist"], "unknown checkpoint 'nonexist'"),
    (["--model", "sharegpt4v-8b"], "Did you mean 'sharegpt4v-7b'"),
    (["--model", "./missing"], "there is no directory ./missing"),
    (["--vision-tower", "./missing"], "'./missing' was not found"),
    (["--dtype", "int3"], "--dtype 'int3' is not supported"),
    (["--kv-cache-dtype", "int2"], "--kv-cache-dtype 'int2' is not supported"),
    (["--conversation", "vicuna"], "Did you mean 'vicuna_v1'"),
    (["--prompt", "about {foo}"], "unknown variable {foo}"),
    (["--prompt", " "], "prompt is empty"),
    (["--prompt", "JSON like {"], "lone '{'"),
    (["--style", "detaild"], "detaild"),
    (["--top-p", "3", "--temperature", "1"], "--top-p must be"),
    (["--out", "caps.txt"], "Pass a directory as --out"),
    (["--format", "txt", "--out", "caps.txt"], "Pass a directory as --out"),
    (["--out", "caps.xml"], "caps.xml: its suffix '.xml' belongs to no format; pass --format as one of txt"),
    (["--format", "parquet", "--out", "caps.jsonl"], "expected .parquet"),
    (["--format", "jsonl"], "must be a file or a directory for the format 'jsonl'"),
    (["--out", "photos/0.png/deep/a.jsonl"], "is not a directory: choose another --"),
    (["--format", "webdataset", "--out", "notes.md"], "notes.md is a file"),
    (["--restart", "--retry-failed"], "cannot be combined"),
    (["--min-words", "9", "--max-words", "3"], "--min-words 9 is more than --max-words 3"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_a_mistake_is_reported_at_once_and_writes_nothing(
    photos: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "notes.md").write_text("mine")
    before = tree(photos.parent)
    assert run("photos", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert tree(photos.parent) == before and {path.name for path in photos.parent.iterdir()} == {"photos", "notes.md"}
    assert run("photos", "--out", "captions.jsonl") == 0
    assert len(captions(photos.parent / "captions.jsonl")) == 3


def test_a_schema_that_takes_hours_to_compile(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler cannot be interrupted; the limit is the server's."""
    monkeypatch.setattr(grammar_trial, "COMPILE_SECONDS", 1.0)
    patterns = [{"type": "string", "pattern": f".*a.{{{number}}}b.*"} for number in range(5, 25)]
    Path("schema.json").write_text(json.dumps({"allOf": patterns}))
    assert run("photos", "--out", "captions.jsonl", "--schema", "schema.json") == 2
    error = capsys.readouterr().err
    assert "--schema: it takes more than 1 s to compile: make it simpler, with fewer patterns in an allOf" in error
    assert {path.name for path in photos.parent.iterdir()} == {"photos", "schema.json"}


def test_an_output_that_is_not_writable(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run("photos", "--out", "out/captions.jsonl") == 2
    assert "is not writable: choose another --" in capsys.readouterr().err
    assert list(photos.parent.iterdir()) == [photos]


def test_a_variable_of_a_table_is_known(photos: Path) -> None:
    Path("table.csv").write_text("image,title\nphotos/0.png,Tom\nphotos/1.png,Ann\n")
    assert run("table.csv", "--out", "out.jsonl", "--prompt", "Who is {titel}?") == 2
    assert run("table.csv", "--out", "out.jsonl", "--prompt", "Who is {title}?") == 0
    assert captions(Path("out.jsonl")) == ["Who is Tom?", "Who is Ann?"]


@pytest.mark.parametrize("flags", [["--prompt", "Why?"], ["--include", "1.png"], ["--existing", "append"]])
def test_a_job_without_records_accepts_new_settings(photos: Path, flags: list[str]) -> None:
    (photos / "0-stop.png").write_bytes(b"")
    assert run("photos", "--prompt", "What?") == 3
    assert (photos / ".share4v" / "job.json").exists()
    (photos / "0-stop.png").unlink()
    assert run("photos", *flags) == 0
    expected = {"1"} if flags[0] == "--include" else {"0", "1", "2"}
    assert {path.stem for path in photos.glob("*.txt")} == expected
    if flags[0] == "--prompt":
        assert (photos / "1.txt").read_text().strip() == "Why?"


def test_answers_without_a_record_are_not_thrown_away(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several texts per image, or behind a slow first image, there are hours of answers before the first record."""
    (photos / "0-stop.png").write_bytes(b"")
    assert run("photos", "--prompt", "What?") == 3
    (photos / "0-stop.png").unlink()
    (photos / ".share4v" / "answers-1.jsonl").write_text("an answer\nanother one\n")
    before = tree(photos)
    for flags in (["--prompt", "Why?"], ["--max-words", "5"]):
        capsys.readouterr()
        assert run("photos", *flags) == 3
        error = capsys.readouterr().err
        assert "the job already has 2 answers with other settings (--" in error
        assert "add --restart" in error and "--retry-failed" not in error
        assert tree(photos) == before
    assert run("photos", "--prompt", "Why?", "--restart") == 0
    assert (photos / "1.txt").read_text().strip() == "Why?"


@pytest.mark.parametrize("content", [None, "[]"])
def test_results_whose_settings_were_lost_are_not_overwritten(
    photos: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    assert run("photos", "--prompt", "What?") == 0
    (photos / ".share4v" / "job.json").unlink()
    if content is not None:
        (photos / ".share4v" / "job.json").write_text(content)
    before = tree(photos)
    assert run("photos", "--prompt", "Why?") == 3
    error = capsys.readouterr().err
    assert "job.json is missing or damaged" in error and "3 inputs with results" in error and "--restart" in error
    assert tree(photos) == before
    assert run("photos", "--prompt", "Why?", "--restart") == 0
    assert (photos / "1.txt").read_text().strip() == "Why?"


def test_a_job_that_runs_out_of_memory_is_stopped_and_not_complete(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1 would say that the outputs are complete, but for some inputs."""

    def without_memory(self: EchoExecutor, tasks: object) -> None:
        raise MemoryError("share4v_layer got no memory")

    with monkeypatch.context() as full:
        full.setattr(EchoExecutor, "run", without_memory)
        assert run("photos") == 3
    error = capsys.readouterr().err
    assert "stopped: not enough memory (share4v_layer got no memory): use a smaller --dtype" in error
    assert "the same command resumes the job" in error and run("photos") == 0


def test_other_settings_are_explained_in_one_sentence_with_flags(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "0.txt").write_text("mine")
    assert run("photos", "--prompt", "What?") == 0
    before = tree(photos)
    capsys.readouterr()
    for flags, change in [
        (["--prompt", "Why?"], "--prompt was 'What?', now 'Why?'"),
        (["--prompt", "What?", "--max-words", "5"], "--max-words was not set, now 5"),
        (["--prompt", "What?", "--begin-with", "A photo"], "--begin-with was not set, now 'A photo'"),
        (["--prompt", "What?", "--max-new-tokens", "9"], "--max-new-tokens was not set, now 9"),
        (["--prompt", "What?", "--temperature", "1"], "--temperature was 0.0, now 1.0"),
        (["--prompt", "What?", "--forbid", "cat"], "--forbid was not set, now 'cat'"),
        (["--style", "tags"], "--prompt was 'What?', now the style 'tags'"),
    ]:
        assert run("photos", *flags) == 3
        error = capsys.readouterr().err
        assert f"3 inputs already have results with other settings ({change}" in error
        assert (
            "add --restart" in error and "captions that people wrote are kept" in error and "--out or --state" in error
        )
        for internal in ("generation", "beginning", "sources", "rules", "sinks", "do_sample"):
            assert internal not in error.partition("(they are in")[0]
        assert tree(photos) == before
    assert run("photos", "--prompt", "Why?", "--restart") == 0
    assert [(photos / f"{n}.txt").read_text().strip() for n in range(3)] == ["mine", "Why?", "Why?"]


def test_a_restart_with_a_mistake_can_be_corrected(photos: Path) -> None:
    """The captions of the first run do not become existing captions because the restart failed at first."""
    (photos / "0.txt").write_text("mine")
    assert run("photos", "--prompt", "What?") == 0
    (photos / "00-stop.png").write_bytes(b"")
    assert run("photos", "--prompt", "Wyh?", "--restart") == 3
    assert run("photos", "--prompt", "Wyh not?", "--restart") == 3
    (photos / "00-stop.png").unlink()
    assert run("photos", "--prompt", "Why?") == 0  # without a record, new settings need no --restart
    assert [(photos / f"{n}.txt").read_text().strip() for n in range(3)] == ["mine", "Why?", "Why?"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.csv"])
def test_a_file_of_somebody_else_is_not_replaced(photos: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(name)
    out.write_text("thesis")
    flags = ["--format", "open-sora-csv"] if name == "out.csv" else []
    assert run("photos", "--out", name, *flags) == 2
    error = capsys.readouterr().err
    assert f"{name} already exists, and this job did not write it" in error and "--overwrite" in error
    assert out.read_text() == "thesis" and not Path(f"{name}.share4v").exists()
    if name != "out.csv":  # Open-Sora's files need images that can be read
        assert run("photos", "--out", name, "--overwrite") == 0 and out.read_bytes() != b"thesis"
        assert run("photos", "--out", name) == 0  # now it is this job's
        assert run("photos", "--out", name, "--prompt", "Why?", "--restart") == 0


@pytest.mark.parametrize(
    ("form", "name"), [("jsonl", "captions.jsonl"), ("parquet", "part-00000.parquet"), ("webdataset", "a.tar")]
)
def test_files_of_somebody_else_in_a_directory(photos: Path, form: str, name: str) -> None:
    Path("out").mkdir()
    (Path("out") / name).write_text("thesis")
    assert run("photos", "--out", "out", "--format", form) == 2
    assert tree(Path("out")) == {name: b"thesis"}


def test_an_empty_file_may_be_replaced(photos: Path) -> None:
    Path("out.jsonl").touch()  # as mktemp makes it
    assert run("photos", "--out", "out.jsonl") == 0
    assert len(captions(Path("out.jsonl"))) == 3


def test_the_summary_says_what_to_do_next(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("photos", "--out", "a b.jsonl") == 0
    error = capsys.readouterr().err
    assert "the captions are in 'a b.jsonl'; to look at them: share4v report 'a b.jsonl'" in error
    assert "--retry-failed" not in error and "break a rule" not in error
    (photos / "fail.png").write_bytes(b"")
    assert run("photos") == 1
    error = capsys.readouterr().err
    assert "the captions are beside the images; to look at them: share4v report photos" in error
    assert f"why inputs failed: {photos}/.share4v/failed.jsonl; the same command with --retry-failed" in error


def test_the_summary_counts_captions_that_break_rules(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("photos", "--prompt", "A {stem|} note: required word missing") == 0
    assert "3 inputs with captions that break a rule after all attempts" in capsys.readouterr().err


def test_an_interruption_says_how_to_resume(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EchoExecutor, "run", interrupted)
        assert run("photos") == 130
    assert capsys.readouterr().err == "share4v: interrupted; the same command resumes the job\n"
    assert run("photos") == 0


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("--recursive", "subfolders are always captioned too"),
        ("--caption_extension=.txt", "choose with --format txt"),
        ("--image_dir", "give the folder without an option"),
        ("--output_dir", "use --out."),
        ("--load-in-4bit", "use --dtype int4"),
        ("--device", "the model runs on MindSpore's device"),
        ("--max_new_tokens", "Did you mean --max-new-tokens?"),
    ],
)
def test_options_of_other_captioners(argument: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["caption-dataset", "photos", argument, "x"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and advice in error and error.count("\n") == 1


def test_an_empty_prompt_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--prompt "$UNSET"` in a script."""
    assert main(["caption", "photos/1.png", "--prompt", " "]) == 2
    assert "--prompt is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["caption-dataset", "photos", "--out", "captions.jsonl", "--schema", "pipe.json"], "pipe.json"),
        (["caption-dataset", "photos", "--out", "captions.jsonl", "--prompt-file", "pipe.txt"], "pipe.txt"),
        (["score", "pipe.jsonl", "captions.csv"], "pipe.jsonl"),
        (["score", "captions.csv", "pipe.json"], "pipe.json"),
        (["score", "captions.csv", "pipe.csv"], "pipe.csv"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_fifo_in_place_of_a_file_is_named(
    photos: Path, arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading it would wait for another program, perhaps forever."""
    os.mkfifo(name)
    Path("captions.csv").write_text("image,caption\n0.png,A cat\n")
    before = tree(photos.parent)

    def writer() -> None:
        """End the wait of a reader, so that the test fails instead of hanging."""
        with Path(name).open("wb"):
            pass

    threading.Thread(target=writer, daemon=True).start()
    assert main(arguments) == 2
    assert f"{name}: not a regular file" in capsys.readouterr().err
    assert tree(photos.parent) == before
