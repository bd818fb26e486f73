"""Tables and names as other programs write them: encodings, delimiters, kohya's and imagefolder's metadata."""

from __future__ import annotations

import base64
import json
import shutil
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.jobs import listed, png, read, write_tar

from mindone.pipelines.image_to_text.dataset.readers import InputError, ReaderOptions, list_inputs
from mindone.pipelines.image_to_text.dataset.state.records import Item, item_from_line, to_line
from mindone.pipelines.image_to_text.dataset.state.skipped import SkippedFiles

LONG = png(1) + bytes(400)
BASE64 = base64.b64encode(LONG).decode()
NAMES = ("a/1.png", "caf\u00e9.png", "3.png")


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(len(name)))
    monkeypatch.chdir(tmp_path)


FRAME = pd.DataFrame({"file_name": [*NAMES, BASE64], "caption": ["One.", 'Caf\u00e9; "quoted"\nlines', "", "Inline."]})


def check(items: list[Item]) -> None:
    assert [item.caption for item in items] == ["One.", 'Caf\u00e9; "quoted"\nlines', None, "Inline."]
    assert [item.key for item in items][:3] == ["a/1", "caf\u00e9", "3"]
    expected = [png(len(name)) for name in NAMES] + [LONG]
    assert [read(item_from_line(to_line(item))) for item in items] == expected
    assert [read(item) for item in reversed(items)] == expected[::-1]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_csv_as_excel_and_pandas_write_it(tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    frame = FRAME.replace("\n", end, regex=True) if end != "\n" else FRAME
    text = frame.to_csv(None, sep=separator, index=False, lineterminator=end)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    items = listed("t.csv")
    if end == "\r\n":
        assert items[1].caption == 'Caf\u00e9; "quoted"\r\nlines'
        return
    check(items)


def test_the_first_line_of_excel_names_the_separator(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sep=^\nfile_name^caption\n3.png^Three; of 3, all.\n")
    assert [(item.key, item.caption) for item in listed("t.csv")] == [("3", "Three; of 3, all.")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["array", "lines", "cr", "object"])
def test_json_of_windows(tmp_path: Path, encoding: str, kind: str) -> None:
    """PowerShell writes UTF-16."""
    rows = FRAME.to_dict("records")
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    if kind in ("lines", "cr"):
        text = ("\r" if kind == "cr" else "\n").join(json.dumps(row, ensure_ascii=False) for row in rows)
    if kind == "object":
        text = json.dumps({"info": {"version": 1}, "data": rows}, ensure_ascii=False)
    name = "t.jsonl" if kind == "cr" else "t.json"
    (tmp_path / name).write_bytes(text.encode(encoding))
    check(listed(name))


# The bytes of the same sheet: three rows, a column and a row that were emptied, a line break within a cell.
SHEET = (
    ("file_name", "caption", "", ""),
    ("a/1.png", "One.", "", ""),
    ("caf\u00e9.png", 'Caf\u00e9; "quoted"\nlines', "", ""),
    ("", "", "", ""),
    ("3.png", "", "", ""),
)
SPREADSHEET_FILES = {  # what "Save as" calls it: separator, encoding, line end, which cells have quotes
    "Excel: CSV UTF-8": (",", "utf-8-sig", "\r\n", "needed"),
    "Excel: CSV UTF-8, a comma as decimal point": (";", "utf-8-sig", "\r\n", "needed"),
    "Excel: CSV (Windows)": (";", "cp1252", "\r\n", "needed"),
    "Excel: CSV (MS-DOS)": (";", "cp850", "\r\n", "needed"),
    "Excel: Unicode text": ("\t", "utf-16", "\r\n", "needed"),
    "LibreOffice: CSV": (",", "utf-8", "\n", "needed"),
    "LibreOffice: CSV, quote all text cells": (";", "utf-8", "\n", "all"),
}


def spreadsheet_file(kind: str) -> bytes:
    separator, encoding, end, quotes = SPREADSHEET_FILES[kind]

    def cell(text: str) -> str:
        needs = any(one in text for one in (separator, '"', "\n")) or (quotes == "all" and text)
        return '"' + text.replace('"', '""') + '"' if needs else text

    return "".join(separator.join(map(cell, row)) + end for row in SHEET).encode(encoding)


@pytest.mark.parametrize("kind", SPREADSHEET_FILES)
def test_csv_files_as_spreadsheets_write_them(tmp_path: Path, kind: str) -> None:
    (tmp_path / "t.csv").write_bytes(spreadsheet_file(kind))
    encoding = SPREADSHEET_FILES[kind][1]
    if encoding.startswith("cp"):
        assert "Save it as UTF-8 (in Excel: CSV UTF-8), or name its encoding" in str(read(listed("t.csv")[1]))
    items = listed("t.csv", encoding=encoding if encoding.startswith("cp") else None)
    assert [item.caption for item in items] == ["One.", 'Caf\u00e9; "quoted"\nlines', None]
    assert [read(item) for item in items] == [png(len(name)) for name in NAMES]


@pytest.mark.parametrize("suffix", [".xlsx", ".XLSX", ".xls", ".xlsm", ".ods"])
def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"t{suffix}").write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match=r"is a spreadsheet, which is not read: save its sheet as CSV \(in Excel: CSV"):
        listed(f"t{suffix}")


def test_a_relative_path_is_looked_for_in_the_current_directory(tmp_path: Path) -> None:
    for name, is_said in (("absent.csv", True), (str(tmp_path / "absent.csv"), False), ("absent/*.png", True)):
        with pytest.raises(InputError, match="there is no") as raised:
            listed(name)
        assert (f"(looked in {tmp_path})" in str(raised.value)) == is_said


def test_a_list_in_utf16_with_cr(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\r".join(NAMES).encode("utf-16"))
    assert [read(item) for item in listed("list.txt")] == [png(len(name)) for name in NAMES]


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "shift_jis"])
def test_other_encodings_are_named_and_can_be_given(tmp_path: Path, encoding: str) -> None:
    name = {"cp1252": "caf\u00e9", "gbk": "\u7167\u7247", "shift_jis": "\u732b\u732b"}[encoding]
    (tmp_path / f"{name}.png").write_bytes(png(77))
    (tmp_path / "t.csv").write_bytes(f"file_name,caption\n{name}.png,{name}\n3.png,Three.\n".encode(encoding))
    (tmp_path / "list.txt").write_bytes(f"{name}.png\n".encode(encoding))
    (tmp_path / "t.jsonl").write_bytes(json.dumps({"image": f"{name}.png"}, ensure_ascii=False).encode(encoding))
    items = listed("t.csv")
    assert read(items[1]) == png(5)
    for item in (items[0], listed("list.txt")[0]):
        reason = str(read(item))
        assert "not UTF-8 (byte 0x" in reason and "CSV UTF-8" in reason and f"{encoding} for" in reason
    if encoding != "shift_jis":  # whose second byte may be a backslash
        with pytest.raises(InputError, match="none of its rows is a JSON object"):
            listed("t.jsonl")
    for path in ("t.csv", "list.txt", "t.jsonl"):
        assert read(listed(path, encoding=encoding)[0]) == png(77)
    assert listed("t.csv", encoding=encoding)[0].caption == name


def test_wrong_names_of_encodings(tmp_path: Path) -> None:
    for name in ("klingon", "base64", "rot13", ""):
        with pytest.raises(InputError, match=r"unknown encoding .* \(--encoding\): use a name such as cp1252"):
            listed("3.png", encoding=name)
    (tmp_path / "t.csv").write_bytes(b"file_name,x\n" + b"3.png,%s\n" % bytes(b"x" * 1000) * 200 + b"caf\xe9.png\n")
    items = listed("t.csv", encoding="ascii")
    assert read(items[0]) == png(5) and "can't decode byte 0xe9" in str(read(items[-1]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4 and more", "a ZIP archive or an Excel workbook .*: save the sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1", "an old Excel workbook"),
        (b"PAR1", "a Parquet file, not what its name says: name it .parquet"),
        (b"\x1f\x8b\x08", "compressed with gzip, .*: unpack it with gunzip"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "it is a pointer of Git LFS, .*: run `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><html>", "a web page"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "t.txt"])
def test_files_that_are_no_text_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        listed(name)


def test_an_image_that_is_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    for name in ("t.parquet", "t.tar", "t.zip"):
        (tmp_path / name).write_bytes((tmp_path / "3.png").read_bytes())
        assert "run `git lfs pull`" in str(read(listed(name)[0]))
    assert "run `git lfs pull`" in str(read(listed("3.png")[0]))


@pytest.mark.parametrize("indent", [None, 2])
def test_kohyas_metadata(tmp_path: Path, indent: int | None) -> None:
    """merge_captions_to_metadata.py writes stems, or full paths with --full_path; a later script adds the size."""
    meta = {
        "3": {"caption": "Three.", "tags": "cat, dog", "train_resolution": [512, 512]},
        "a/1.png": {"tags": "only tags"},
        str(tmp_path / "caf\u00e9.png"): {"caption": "Coffee."},
        "gone": {"caption": "No image."},
    }
    (tmp_path / "meta_cap.json").write_text(json.dumps(meta, indent=indent, ensure_ascii=False))
    items = listed("meta_cap.json")
    assert [(item.key, item.caption) for item in items] == [
        ("3", "Three."),
        ("a/1", None),
        ("caf\u00e9", "Coffee."),
        ("gone", "No image."),
    ]
    assert items[0].columns == {"caption": "Three.", "tags": "cat, dog", "train_resolution": [512, 512]}
    assert [read(item) for item in items] == [png(5), png(7), png(8), "there is no such file"]
    (tmp_path / "plain.json").write_text(json.dumps({"3.png": "Three.", "a/1.png": 5}, indent=indent))
    items = listed("plain.json")
    assert (items[0].key, items[0].caption, read(items[0])) == ("3", "Three.", png(5))
    assert "expected the caption of 'a/1.png' or an object, got int" in str(read(items[1]))


def test_imagefolders_metadata(tmp_path: Path) -> None:
    """As `datasets` reads it: paths relative to the metadata file."""
    rows = [{"file_name": "1.png", "text": "One.", "objects": {"bbox": [1, 2]}}]
    (tmp_path / "a" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pd.DataFrame({"file_name": ["1.png"], "text": ["One."]}).to_csv(tmp_path / "a" / "metadata.csv", index=False)
    for name in ("metadata.jsonl", "metadata.csv"):
        [item] = listed(f"a/{name}", caption_column="text")
        assert (item.key, item.caption, read(item)) == ("1", "One.", png(7))


def test_nested_json(tmp_path: Path) -> None:
    rows = [{"id": 1, "meta": {"file": "3.png", "texts": {"en": "Three."}}}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"image_column: id, meta, meta\.file, meta\.texts$"):
        listed("t.json")
    [item] = listed("t.json", image_column="meta.file", caption_column="meta.texts.en")
    assert (item.key, item.caption, read(item)) == ("3", "Three.", png(5))
    (tmp_path / "t.jsonl").write_text(json.dumps({"meta": {"file": BASE64}}))
    assert read(listed("t.jsonl", image_column="meta.file")[0]) == LONG
    (tmp_path / "coco.json").write_text(
        json.dumps({"info": [], "images": [{"id": 7, "file_name": "3.png"}], "annotations": [{"image_id": 7}]})
    )
    assert [(item.key, item.columns) for item in listed("coco.json")] == [("3", {"id": 7})]
    (tmp_path / "one.json").write_text(json.dumps({"image": "3.png", "n": [1]}, indent=1))
    assert [item.columns for item in listed("one.json")] == [{"n": [1]}]


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.csv", "t.parquet"])
def test_an_error_lists_few_columns(tmp_path: Path, name: str) -> None:
    columns = [f"column {number} {'x' * 100}" for number in range(20_000)] + ["photograph"]
    if name == "t.parquet":
        columns = columns[:2000]
        pq.write_table(pa.table({column: ["x"] for column in columns} | {"photograph": ["3.png"]}), tmp_path / name)
    elif name == "t.csv":
        (tmp_path / name).write_text(",".join(columns) + "\n" + ",".join(["1"] * len(columns)))
    else:
        (tmp_path / name).write_text(json.dumps(dict.fromkeys(columns, 1)))
    for options in ({}, {"image_column": "photo"}):
        with pytest.raises(InputError, match=r"and [\d,]+ more") as caught:
            listed(name, **options)
        assert len(str(caught.value)) < 2500
    with pytest.raises(InputError, match=r"two columns have the same name: a$"):
        (tmp_path / "double.csv").write_text(",".join(["a", "a", *columns]) + "\n")
        listed("double.csv")


def test_a_misspelt_column_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Photo,alt\n3.png,x\n")
    with pytest.raises(
        InputError, match=r"has no column 'foto' \(image_column\); it has Photo, alt\. Did you mean 'Photo'"
    ):
        listed("t.csv", image_column="foto")


# ---- names


def test_both_normalizations_of_a_name(tmp_path: Path) -> None:
    """A list made on a Mac (NFD) of files that are in NFC, and patterns and names typed in the other form."""
    other = unicodedata.normalize("NFD", "caf\u00e9.png")
    (tmp_path / "list.txt").write_text(f"{other}\n3.png\n")
    items = listed("list.txt")
    assert [read(item) for item in items] == [png(8), png(5)] and items[0].path == str(tmp_path / "caf\u00e9.png")
    assert [item.key for item in listed(str(tmp_path), include=(unicodedata.normalize("NFD", "caf\u00e9*"),))] == [
        "caf\u00e9"
    ]
    assert [item.key for item in listed(str(tmp_path / unicodedata.normalize("NFD", "c*\u00e9.png")))] == ["caf\u00e9"]


def test_a_name_that_differs_in_case_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("A/1.PNG\na/1.PNG\n")
    assert [str(read(item)) for item in listed("list.txt")] == [
        "there is no such file",
        "there is no such file; '1.png' exists, which differs only in case or encoding",
    ]
    with pytest.raises(InputError, match="; a exists, which differs only in case or encoding; check the path"):
        listed("A")


def test_images_with_the_same_name_in_two_formats(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("1.jpg", "1.png", "1.webp", "2.png"):
        (tmp_path / "in" / name).write_bytes(png(len(name)))
    (tmp_path / "in" / "1.txt").write_text("Mine.")

    def listing(**options: Any) -> tuple[list[Any], dict[str, tuple[str, ...]]]:
        skipped = SkippedFiles()
        items = list(list_inputs(["in"], ReaderOptions(**options), skipped))
        return [(item.key, item.caption) for item in items], {one.reason: one.names for one in skipped.groups()}

    three = ("in/1.jpg", "in/1.png", "in/1.webp")
    found = [("1.jpg", None), ("1.png", None), ("1.webp", None), ("2", None)]
    assert listing() == (found, {"ambiguous": ("in/1.txt",)})
    assert listing(separate_files=True) == (found, {"ambiguous": ("in/1.txt",), "full_name": three})
    first = [("1", "Mine."), ("2", None)]
    assert listing(separate_files=True, same_name="first") == (first, {"same_name": three[1:]})
    with pytest.raises(InputError, match="unknown value of same_name 'last'"):
        listing(same_name="last")


def test_the_suffix_of_a_shard_of_lists_is_no_table(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("1.png", png(1))])
    assert [item.key for item in listed("s.tar", encoding="utf-16")] == ["s/1"]


# ---- files that the programs themselves wrote (helpers/foreign_files)

FOREIGN = Path(__file__).parents[4] / "helpers" / "foreign_files"


def test_metadata_that_kohyas_scripts_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path = tmp_path / "kohya"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("1.png", "caf\u00e9.png", "\u732b 2.png", "sub/3.PNG")):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    for name in ("meta_cap_dd.json", "meta_full.json"):
        shutil.copy(FOREIGN / "kohya" / name, tmp_path)
    captions = ['A cat, "sitting".', "Un caf\u00e9.", "\u732b\u3002"]
    items = listed("meta_full.json")
    assert [item.caption for item in items] == [*captions[:2], "Three.", captions[2]]
    assert [read(item) for item in items] == [png(0), png(1), png(3), png(2)]
    with pytest.raises(InputError, match=rf"such as '1', and there are none in {tmp_path}: pass .* \(--image-root\)"):
        listed("meta_cap_dd.json")
    items = listed("meta_cap_dd.json", image_root="train")
    assert [item.caption for item in items] == captions and [read(item) for item in items] == [png(0), png(1), png(2)]
    assert items[2].columns["tags"] == "cat, 1girl"


def test_folders_that_img2dataset_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is opened; the parquet format keeps a row for the URL that could not be downloaded."""
    monkeypatch.chdir(FOREIGN / "img2dataset")

    def listing(name: str) -> tuple[dict[str | None, bool], dict[str, tuple[str, ...]]]:
        skipped = SkippedFiles()
        items = list(list_inputs([name], ReaderOptions(), skipped))
        found = {item.caption: isinstance(read(item), bytes) for item in items}
        return found, {one.reason: one.names for one in skipped.groups()}

    captions = {"A dark, flat image": True, "Caf\u00e9 \u732b": True, None: True}
    described = ("webdataset/00000.parquet", "webdataset/00000_stats.json")
    assert listing("webdataset") == (captions, {"described": described})
    assert listing("parquet") == ({**captions, "Missing": False}, {"described": ("parquet/00000_stats.json",)})


def test_the_first_of_several_formats_in_an_archive(tmp_path: Path) -> None:
    """As in a folder; rows of a table are all captioned."""
    members = [(name, png(len(name))) for name in ("1.jpg", "1.png", "1.webp", "2.png")] + [("1.txt", b"Mine.")]
    write_tar(tmp_path / "s.tar", members)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    for name in ("s.tar", "s.zip"):
        skipped = SkippedFiles()
        items = list(list_inputs([name], ReaderOptions(same_name="first"), skipped))
        assert [(item.key, item.caption, read(item)) for item in items] == [
            ("s/1", "Mine.", png(5)),
            ("s/2", None, png(5)),
        ]
        [group] = skipped.groups()
        assert (group.reason, group.names) == ("same_name", (f"{name}::1.png", f"{name}::1.webp"))
        assert [item.key for item in listed(name)] == ["s/1.jpg", "s/1.png", "s/1.webp", "s/2"]
    (tmp_path / "t.csv").write_text("image\n3.png\n3.jpg\n")
    assert [item.key for item in listed("t.csv", same_name="first")] == ["3", "3.jpg"]
