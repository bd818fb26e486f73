"""The column `match`: rows, other columns and their order stay; what cannot be scored stays empty."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.jobs import write_tar
from helpers.warm_processes import warm_python
from PIL import Image

from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.evaluation.match_table import add_match
from mindone.pipelines.image_to_text.evaluation.verify import Contradiction
from mindone_share4v.cli import main

COUNT = 37
BROKEN = 5


def score(images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
    """The red of an image and the length of a text."""
    return np.array([image.getpixel((0, 0))[0] + len(text) / 100 for image, text in zip(images, texts, strict=True)])


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "img").mkdir()
    made = []
    for number in range(COUNT):
        path = f"img/{number}.png"
        Image.new("RGB", (5, 5), (number, 0, 0)).save(tmp_path / path)
        made.append({"path": path, "text": 'say "x", ' + "y" * number, "num_frames": 1, "match": "old"})
    (tmp_path / f"img/{BROKEN}.png").write_bytes(b"")
    made[BROKEN + 1]["text"] = ""
    return made


def expected(rows: list[dict[str, Any]]) -> list[float | None]:
    return [
        None if number in (BROKEN, BROKEN + 1) else round(number + len(row["text"]) / 100, 4)
        for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format(tmp_path: Path, rows: list[dict[str, Any]], suffix: str) -> None:
    table = tmp_path / f"t{suffix}"
    frame = pd.DataFrame(rows)
    if suffix == ".parquet":
        frame.to_parquet(table, row_group_size=10)
    elif suffix.startswith(".json"):
        frame.to_json(table, orient="records", lines=suffix == ".jsonl", indent=None if suffix == ".jsonl" else 2)
    else:
        frame.to_csv(table, index=False, sep="," if suffix == ".csv" else "\t")
    summary = add_match(table, score, batch_size=8)
    assert summary.path == tmp_path / f"t_match{suffix}"
    assert (len(summary.scores), summary.failed) == (COUNT - 2, 2)
    assert f"img/{BROKEN}.png" in summary.problems[0] and "there is no 'text'" in summary.problems[1]
    read = {
        ".csv": pd.read_csv,
        ".tsv": lambda path: pd.read_csv(path, sep="\t"),
        ".json": pd.read_json,
        ".jsonl": lambda path: pd.read_json(path, lines=True),
        ".parquet": pd.read_parquet,
    }[suffix]
    found = read(summary.path)
    np.testing.assert_allclose(found["match"], np.array(expected(rows), float), atol=1e-4)
    assert list(found.columns) == ["path", "text", "num_frames", "match"]
    assert list(found["text"].fillna("")) == [row["text"] for row in rows]
    assert len(found[found["match"] >= 20]) == COUNT - 20  # what Open-Sora's --matchmin 20 keeps


def check(images: Sequence[Image.Image], texts: Sequence[str]) -> list[list[Contradiction]]:
    """A contradiction in every caption that ends in "yy"."""
    return [[Contradiction("color", "y", "x", 3, 2.0)] if text.endswith("yy") else [] for text in texts]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_both_columns(tmp_path: Path, rows: list[dict[str, Any]], suffix: str) -> None:
    table, frame = tmp_path / f"t{suffix}", pd.DataFrame(rows[:5])
    write = {".csv": frame.to_csv, ".parquet": frame.to_parquet}.get(suffix)
    if write is None:
        frame.to_json(table, orient="records", lines=True)
    else:
        write(table, index=False)
    summary = add_match(table, score, check, batch_size=2)
    assert (summary.rows, len(summary.scores), summary.contradicted) == (5, 5, 3)
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet}.get(suffix, lambda path: pd.read_json(path, lines=True))
    cells = [json.loads(cell) if isinstance(cell, str) else cell for cell in read(summary.path)["contradictions"]]
    found = {"kind": "color", "stated": "y", "expected": "x", "start": 3, "log_ratio": 2.0}
    assert cells == [[], [], [found], [found], [found]]


def test_columns_of_caption_dataset(
    tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    table = tmp_path / "out" / "captions.jsonl"
    lines = [
        {"key": "1", "source": "img/1.png", "caption": "ab", "captions": ["ab", "c"], "error": None},
        {"key": "2", "source": "img/2.png", "caption": None, "captions": [], "error": "truncated"},
    ]
    table.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    summary = add_match(table, score, out="scored.jsonl")
    assert summary.scores == [1.02] and summary.failed == 1
    written = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert [row.pop("match") for row in written] == [1.02, None] and written == lines
    assert add_match(table, score, out="again.jsonl", caption_column="captions").scores == [1.02]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.csv", "a,text\n1,x\n", {}, "no column of images among 'a', 'text'"),
        ("t.csv", "path,a\n1,x\n", {}, "no column of captions among"),
        ("t.csv", "path,text\n1,x\n", {"caption_column": "txt"}, "Did you mean 'text'"),
        ("t.csv", "path,text\n1,x\n", {"out": "t.csv"}, "choose another name"),
        ("t.xlsx", "", {}, "expected a table that ends in"),
        ("t.jsonl", '{"path": "x", "text": "y"}\n{', {}, "line 2: not JSON"),
        ("t.jsonl", "[" * 100_000, {}, "line 1: not JSON: maximum recursion depth"),
        ("t.json", '{"path": "x", "text": "y"}', {}, "expected a list of objects"),
        ("t.json", '[{"path": "x", "text": "y"}, 3]', {}, "entry 2: expected an object, got int"),
    ],
)
def test_what_cannot_be_scored_is_an_error_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    with pytest.raises(ValueError, match=message):
        add_match(name, score, **options)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_csv_of_excel_is_read(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    table = tmp_path / "t.csv"
    with table.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["path", "text"], ["img/1.png", "a\nb"]])
    assert add_match(table, score).scores == [1.03]


def test_rows_that_were_emptied_in_a_spreadsheet_are_no_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"path,text\r\nimg/1.png,ab\r\n,\r\n\r\nimg/2.png,abc\r\n")
    assert add_match(table, score).scores == [1.02, 2.03]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,text\nimg/1.png,a,b\n", "line 2: it has more fields than the 2 columns"),
        ("path,text\nimg/1.png,\u00e9\n".encode("latin-1"), r"t.csv: not UTF-8 .byte 0xe9.*name its encoding"),
    ],
)
def test_a_csv_that_cannot_be_read_is_an_error_with_a_next_step(
    tmp_path: Path, rows: list[dict[str, Any]], content: bytes, message: str
) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        add_match(table, score)


@pytest.mark.parametrize(("name", "given"), [("utf-16", None), ("cp1252", "cp1252"), ("gbk", "gbk")])
def test_other_encodings_become_utf8(tmp_path: Path, rows: list[dict[str, Any]], name: str, given: str | None) -> None:
    text = "写真" if name == "gbk" else "é"
    (tmp_path / "t.csv").write_bytes(f"path,text\r\nimg/1.png,{text}\r\n".encode(name))
    assert add_match(tmp_path / "t.csv", score, encoding=given).scores == [1 + len(text) / 100]
    assert list(pd.read_csv(tmp_path / "t_match.csv")["text"]) == [text]


# Outputs of jobs


@pytest.fixture
def job(tmp_path: Path, rows: list[dict[str, Any]], echo_executor: None) -> Path:
    """A job on images that no path names: in an archive. One fails."""
    names = [f"{number}-fail" if number == 3 else f"{number}" for number in range(6)]
    data = [(tmp_path / f"img/{number + 10}.png").read_bytes() for number in range(6)]
    write_tar(tmp_path / "a.tar", [(f"{name}.png", one) for name, one in zip(names, data, strict=True)])
    formats = ("jsonl", "json", "csv", "parquet")
    caption_dataset(tmp_path / "a.tar", out=tmp_path / "out", prompt="It is {key}.", format=formats, shard_size=4)
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.json", "captions.csv", "part-*.parquet"])
def test_the_images_of_a_jobs_output_are_the_jobs_inputs(job: Path, name: str) -> None:
    for path in job.glob("*.*"):  # a folder with several tables is an error
        if not path.match(name) and path.is_file():
            path.unlink()
    summary = add_match(job, score)
    expected = [n + 10 + len(f"It is a/{n}.") / 100 for n in range(6) if n != 3]
    assert summary.scores == expected and summary.failed == 1
    assert summary.problems[0].endswith("a.tar::3-fail.png: it has no caption, since it failed: it cannot be read")
    read = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}
    found = read.get(summary.path.suffix, lambda path: pd.read_json(path, lines=True))(summary.path)
    np.testing.assert_allclose(found["match"].dropna(), expected, atol=1e-4)
    assert list(found["key"]) == [f"a/{n}" for n in (0, 1, 2, "3-fail", 4, 5)]


def test_rows_that_a_person_removed_are_skipped_and_another_order_is_an_error(job: Path) -> None:
    table = job / "captions.jsonl"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[1:3] + lines[4:]))
    assert [int(one) for one in add_match(table, score).scores] == [11, 12, 14, 15]
    table.write_text("".join(reversed(lines)))
    with pytest.raises(ValueError, match=r"no input 'a/4' behind those of the rows before.*--image-column"):
        add_match(table, score, out=job / "reversed.jsonl")


def test_folders(job: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has several tables: give one of .*captions.jsonl"):
        add_match(job, score)
    with pytest.raises(ValueError, match=r"has no table that caption_dataset wrote.*--format"):
        add_match(tmp_path / "img", score)


# Interruptions


KILLED = """
import os, signal, sys
from mindone.pipelines.image_to_text.evaluation.match_table import add_match

most = int(sys.argv[2])

def score(images, texts):
    with open("log", "a") as log:
        log.writelines(f"{text}\\n" for text in texts)
    if most and open("log").read().count("\\n") >= most:
        os.kill(os.getpid(), signal.SIGKILL)
    return [image.getpixel((0, 0))[0] + len(text) / 100 for image, text in zip(images, texts)]

summary = add_match(sys.argv[1], score, batch_size=4, resume={"name": sys.argv[3]})
print(summary.resumed)
"""


def test_a_killed_command_continues_after_the_scores_that_it_had(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    table = tmp_path / "t.parquet"
    pd.DataFrame(rows).to_parquet(table)
    whole = add_match(table, score, out=tmp_path / "whole.parquet").path.read_bytes()

    def run(most: int, name: str) -> tuple[int, str]:
        arguments = [warm_python(), "-c", KILLED, str(table), str(most), name]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        return done.returncode, done.stdout.strip()

    assert run(10, "a") == (-signal.SIGKILL, "")  # the third batch is lost, the first two are not
    assert run(20, "a") == (-signal.SIGKILL, "")
    assert not (tmp_path / "t_match.parquet").exists()
    assert run(0, "a")[0] == 0
    assert (tmp_path / "t_match.parquet").read_bytes() == whole
    log = (tmp_path / "log").read_text().splitlines()
    assert len(set(log)) == COUNT - 2 and len(log) == COUNT - 2 + 2 * 4  # only the batches of the kills, twice
    assert not list(tmp_path.glob("*.progress"))


def interrupted(images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
    """Score the first batches, and then be interrupted."""
    if len(texts[0]) > 9 + 8:
        raise KeyboardInterrupt
    return score(images, texts)


@pytest.mark.parametrize("change", ["model", "encoding", "table"])
def test_scores_of_an_interrupted_command_are_not_discarded_silently(
    tmp_path: Path, rows: list[dict[str, Any]], change: str
) -> None:
    table = tmp_path / "t.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    original = table.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        add_match(table, interrupted, batch_size=4, resume={"model": "a"})
    if change == "table":
        table.write_bytes(original.replace(b'say ""x""', b'say ""z""'))
    other = {"resume": {"model": "b" if change == "model" else "a"}}
    other |= {"encoding": "latin-1"} if change == "encoding" else {}
    with pytest.raises(ValueError, match=r"has the values of 12 rows .*other settings.*--overwrite"):
        add_match(table, score, **other)
    table.write_bytes(original)
    if change == "model":
        assert add_match(table, score, overwrite=True, **other).resumed == 0
    else:
        assert add_match(table, score, resume={"model": "a"}).resumed == 12


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_only_the_rows_that_failed_are_tried_again(tmp_path: Path, rows: list[dict[str, Any]], suffix: str) -> None:
    """For example when a server was down: hours of scores are not computed again for a few images."""
    table, again = tmp_path / f"t{suffix}", tmp_path / "again"
    frame = pd.DataFrame(rows)
    _ = frame.to_csv(table, index=False) if suffix == ".csv" else frame.to_parquet(table)
    missing = [tmp_path / f"img/{number}.png" for number in (0, 9, 30)]
    pictures = [path.read_bytes() for path in missing]
    for path in missing:
        path.unlink()
    out = tmp_path / f"t_match{suffix}"
    asked: list[str] = []

    def counted(images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        if again.exists() and len(asked) > 1:
            raise KeyboardInterrupt
        return score(images, texts)

    def call(**options: Any) -> int:
        return add_match(table, counted, batch_size=4, resume={"model": "a"}, **options).failed

    with pytest.raises(ValueError, match="has no rows to try again"):
        call(retry_failed=True)
    assert call() == 5
    for path, picture in zip(missing[:2], pictures, strict=False):
        path.write_bytes(picture)
    with pytest.raises(FileExistsError, match=r"exists: try the rows again .*--retry-failed"):
        call()
    with pytest.raises(ValueError, match="other settings"):
        add_match(table, counted, resume={"model": "b"}, retry_failed=True)
    with pytest.raises(FileExistsError, match=r"exists: try the rows again .*--retry-failed"):  # nothing has changed
        call()
    before, asked[:] = out.read_bytes(), []
    again.touch()
    with pytest.raises(KeyboardInterrupt):
        call(retry_failed=True)
    assert out.read_bytes() == before and asked == [rows[0]["text"], rows[9]["text"]]
    again.unlink()
    for left in (3, 2):
        asked[:] = []
        assert call(retry_failed=True) == left
        assert asked == [rows[9 if left == 3 else 30]["text"]]  # that of row 0 was stored
        missing[2].write_bytes(pictures[2])
    found = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    assert [None if np.isnan(one) else round(float(one), 4) for one in found["match"]] == expected(rows)
    (tmp_path / f"img/{BROKEN}.png").write_bytes(pictures[0])
    table.write_bytes(table.read_bytes())
    assert call(retry_failed=True) == 1
    assert call(overwrite=True) == 1 and len(asked) > COUNT - 2  # everything again


def test_an_existing_output_is_replaced_only_on_request(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "t_match.csv"
    pd.DataFrame(rows[:4]).to_csv(table, index=False)
    out.write_text("edited by hand")

    def unused(images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("this is known before the first image is scored")

    for named in (None, out):
        with pytest.raises(FileExistsError, match=r"t_match.csv exists: .*--out.*--overwrite"):
            add_match(table, unused, out=named, resume={})
    assert out.read_text() == "edited by hand" and {path.name for path in tmp_path.iterdir()} == {
        "img",
        "t.csv",
        out.name,
    }
    add_match(table, score, overwrite=True)
    assert list(pd.read_csv(out)["match"]) == expected(rows)[:4]


def test_a_mistake_in_the_table_is_reported_before_a_model_is_loaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("path,text\n1.png,x\n")
    Path("t_match.csv").write_text("mine")
    for arguments, message in (
        (["none.csv"], "none.csv: there is no such file"),
        (["t.csv"], "t_match.csv exists"),
        (["t.csv", "--out", "new.csv", "--caption-column", "txt"], "Did you mean 'text'"),
    ):
        assert main(["match", *arguments, "--clip", "no-such-model"]) == 2
        assert message in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "t_match.csv"}
