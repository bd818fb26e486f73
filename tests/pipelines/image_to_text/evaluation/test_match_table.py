"""The column `match`: rows, other columns and their order stay; what cannot be scored stays empty."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mindone.pipelines.image_to_text.evaluation.match_table import add_match
from mindone.pipelines.image_to_text.evaluation.verify import Contradiction

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


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format(tmp_path: Path, rows: list[dict[str, Any]], suffix: str) -> None:
    table = tmp_path / f"t{suffix}"
    frame = pd.DataFrame(rows)
    if suffix == ".parquet":
        frame.to_parquet(table, row_group_size=10)
    elif suffix == ".jsonl":
        frame.to_json(table, orient="records", lines=True)
    else:
        frame.to_csv(table, index=False, sep="," if suffix == ".csv" else "\t")
    summary = add_match(table, score, batch_size=8)
    assert summary.path == tmp_path / f"t_match{suffix}"
    assert (len(summary.scores), summary.failed) == (COUNT - 2, 2)
    assert f"img/{BROKEN}.png" in summary.problems[0] and "there is no 'text'" in summary.problems[1]
    read = {
        ".csv": pd.read_csv,
        ".tsv": lambda path: pd.read_csv(path, sep="\t"),
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
        ("path,text\nimg/1.png,\u00e9\n".encode("latin-1"), "t.csv: not UTF-8 text .byte 0xe9.: save it as UTF-8"),
        ("path,text\nimg/1.png,a\n".encode("utf-16"), "t.csv: not UTF-8 text .byte 0xff."),
    ],
)
def test_a_csv_that_cannot_be_read_is_an_error_with_a_next_step(
    tmp_path: Path, rows: list[dict[str, Any]], content: bytes, message: str
) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        add_match(table, score)
