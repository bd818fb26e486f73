"""Tables: JSON, JSONL, CSV, Parquet, Arrow and directories that `datasets` wrote."""

from __future__ import annotations

import base64
import json
import random
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.jobs import listed, png, read
from hypothesis import given
from hypothesis import strategies as st

from mindone.pipelines.image_to_text.dataset.readers import InputError, Reader, parquet_table
from mindone.pipelines.image_to_text.dataset.readers import json_rows as json_module
from mindone.pipelines.image_to_text.dataset.readers.parquet_table import ParquetColumn

LONG = png(1) + bytes(400)  # so that its base64 is as long as a real image's
BASE64 = base64.b64encode(LONG).decode()


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.png", "a/2.png", "3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(len(name)))
    monkeypatch.chdir(tmp_path)


# Row, expected key, and expected result of reading it: bytes, or part of the reason for the failure.
ROWS: list[tuple[Any, str, bytes | str]] = [
    ({"image": "a/1.png", "id": 7, "caption": "One."}, "a/1", png(7)),
    ({"image": "3.png", "tags": ["x", {"y": None}]}, "3", png(5)),
    ({"image": "a/1.png"}, "a/1.png", png(7)),
    ({"image": f"data:image/png;base64,{BASE64}", "text": "é\u2028\n"}, "t/3", LONG),
    ({"image": BASE64}, "t/4", LONG),
    ({"image": {"bytes": BASE64, "path": "x.png"}}, "t/5", LONG),
    ({"image": {"bytes": None, "path": "a/2.png"}}, "a/2", png(7)),
    ({"image": ["3.png"]}, "3.png", png(5)),
    ({"image": ["3.png", "a/1.png"]}, "t/8", "has no image in this row"),
    ({"image": None}, "t/9", "the column 'image' is empty"),
    ({"text": "no picture"}, "t/10", "the column 'image' is empty"),
    ({"image": 5}, "t/11", "has no image in this row: 5"),
    ("a/2.png", "a/2.png", png(7)),
    (17, "t/13", "expected an object, got int"),
    ({"image": "data:image/png;base64,%%%"}, "t/14", "base64 of the data URI is invalid"),
    ({"image": "gone.png"}, "gone", "there is no such file"),
]


def check_rows(path: Path) -> None:
    items = listed(path)
    assert [item.key for item in items] == [key for _, key, _ in ROWS]
    for item, (row, _, expected) in zip(items, ROWS, strict=True):
        found = read(item)
        assert found == expected if isinstance(expected, bytes) else expected in str(found), item
        if isinstance(row, dict):
            assert item.columns == {name: value for name, value in row.items() if name != "image"}
        # The listing must not contain images.
        assert BASE64 not in json.dumps(item.locator)
    assert (
        items[0].caption == "One."
        and items[3].source == f"{path}::3"
        and items[0].source == str(path.parent / "a/1.png")
    )


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_json_array(tmp_path: Path, indent: int | None, mark: str) -> None:
    text = json.dumps([row for row, _, _ in ROWS], indent=indent, ensure_ascii=indent is None)
    (tmp_path / "t.json").write_text(mark + text, encoding="utf-8")
    check_rows(tmp_path / "t.json")


@pytest.mark.parametrize(("name", "end"), [("t.jsonl", "\n"), ("t.ndjson", "\r\n"), ("t.json", "\n\n")])
def test_json_lines(tmp_path: Path, name: str, end: str) -> None:
    text = end.join(json.dumps(row, ensure_ascii=False) for row, _, _ in ROWS)
    (tmp_path / name).write_bytes(f"\ufeff{text}".encode())
    check_rows(tmp_path / name)


def test_each_malformed_json_line_is_one_failed_item(tmp_path: Path) -> None:
    lines = [b"{broken", b'{"image": "3.png"}', b'{"image": "caf\xe9"}', b"", b"[1]", b"NaN", b'{"image": "a/1.png"} x']
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    items = listed(tmp_path / "t.jsonl")
    assert [item.key for item in items] == ["t/0", "3", "t/2", "t/3", "t/4", "t/5"]
    reasons = [read(item) for item in items]
    assert reasons[1] == png(5) and "not UTF-8 at byte 14" in str(reasons[2]) and "got list" in str(reasons[3])
    assert all("not JSON" in str(reasons[index]) for index in (0, 5)) and "got float" in str(reasons[4])


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_elements_are_at_the_offsets_of_the_scanner(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "elements.json"
    rng = random.Random(0)
    values = [value, {"a": value, '"[\\': "]}"}, [value, value]]
    for ascii_only in (True, False):
        path.write_bytes(b" [" + b" ,\n".join(_dumped(one, ascii_only) for one in values) + b" ]\n ")
        json_module.CHUNK = rng.choice([1, 2, 3, 5, 64, 2**20])
        try:
            with path.open("rb") as file:
                found = list(json_module.elements(file))
        finally:
            json_module.CHUNK = 2**20
        assert [json.loads(data) for _, data, problem in found if problem is None] == values
        assert all(path.read_bytes()[offset:].startswith(data) for offset, data, _ in found)


def _dumped(value: Any, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ('[{"image": "3.png"}', ["", "the file ends before the array does"]),
        ('[{"image": "3.png"}, {"image": "a/1', ["", "the file ends in the middle of this element"]),
        ('[{"image": "3.png"}, {"image" "a/1.png"}, {"image": "a/1.png"}]', ["", "not JSON", ""]),
        ('[{"image": "3.png"},, {"image": "a/1.png"},]', ["", "not JSON", ""]),
        ('[{"image": "3.png"}] [{"image": "a/1.png"}]', ["", "there is more data after the end"]),
    ],
)
def test_damaged_arrays(tmp_path: Path, text: str, reasons: list[str]) -> None:
    (tmp_path / "t.json").write_text(text)
    found = [read(item) for item in listed(tmp_path / "t.json")]
    assert len(found) == len(reasons)
    for one, reason in zip(found, reasons, strict=True):
        assert isinstance(one, bytes) if not reason else reason in str(one)


def test_an_unclosed_quote_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_module, "MAX_ELEMENT_BYTES", 2**21)
    (tmp_path / "t.json").write_text('[{"image": "3.png"}, {"image": "' + "x" * 2**24 + "}]")
    items = listed(tmp_path / "t.json")
    assert len(items) == 2 and "is a quote missing?" in str(read(items[1]))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", '{"data": [1]}', "expected an array of objects, .*; it has data"),
        ("t.json", '{\n"name": "3", "version": "1.0"}', "expected an array of objects, .*; it has name, version"),
        ("t.json", "17", "expected an array of objects"),
        ("t.jsonl", "rubbish\n" * 3, "none of its rows is a JSON object"),
        ("t.jsonl", '{"x": 1}\n' * 3, "no column has the name of an image column; name it with image_column: x"),
        ("t.csv", "a,b\n1,2\n", "name it with image_column: a, b"),
        ("t.csv", "a,a,image\n1,2,3\n", "two columns have the same name"),
        ("t.csv", '"a\n1,2\n', "the line of column names is malformed"),
    ],
)
def test_tables_without_images_are_rejected(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        listed(tmp_path / name)


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.csv", "t.tsv"])
def test_an_empty_table_has_no_items(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    assert listed(tmp_path / name) == []


def test_rows_before_the_first_image_are_items(tmp_path: Path) -> None:
    """As in ShareGPT4V's own list of instructions, some of which have no image."""
    rows = [{"id": 1}, {"id": 2}, {"id": 3, "image": "3.png"}, {"id": 4}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    items = listed(tmp_path / "t.json")
    assert [item.columns["id"] for item in items] == [1, 2, 3, 4] and read(items[2]) == png(5)


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [
        {"image": "wrong", "photo": "1.png", "alt": f" Alt {n}. ", "caption": "x", "id": f"k/{n}"} for n in range(2)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = {"image_column": "photo", "caption_column": "alt", "key_column": "id", "image_root": str(tmp_path / "a")}
    items = listed(tmp_path / "t.jsonl", **names)
    assert [(item.key, item.caption, read(item)) for item in items] == [
        ("k/0", "Alt 0.", png(7)),
        ("k/1", "Alt 1.", png(7)),
    ]
    with pytest.raises(
        InputError, match=r"has no column 'foto' \(image_column\); it has image, photo, alt, caption, id"
    ):
        listed(tmp_path / "t.jsonl", image_column="foto")


def test_csv_with_quotes_line_ends_and_a_bom(tmp_path: Path) -> None:
    (tmp_path / 'new\nline, "q".png').write_bytes(png(9))
    text = (
        '\ufeffid,file_name,"a ""title"""\r\n1,"new\nline, ""q"".png","two\r\nlines"\r\n\r\n'
        f'2,{BASE64},é\r\n3\r\n4,3.png,x,y\r\n5,"3.png"x,y\r\n6,3.png,'
    )
    (tmp_path / "t.csv").write_bytes(text.encode() + b"caf\xe9\n")
    items = listed(tmp_path / "t.csv")
    found = [read(item) for item in items]
    assert found[:2] == [png(9), LONG] and found[5] == png(5)
    assert items[0].columns == {"id": "1", 'a "title"': "two\r\nlines"} and items[5].columns['a "title"'] == "caf\udce9"
    assert "'file_name' is empty" in str(found[2])
    assert "line 8: 4 fields for 3 columns" in str(found[3]) and "line 9: ',' expected after" in str(found[4])
    assert [item.key for item in items] == ['new\nline, "q"', "t/1", "t/2", "t/3", "t/4", "3"]


def test_an_unclosed_quote_in_csv(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('image\tx\n3.png\t1\na/1.png\t"2\na/2.png\t3\n')
    found = [read(item) for item in listed(tmp_path / "t.tsv")]
    assert found[0] == png(5) and len(found) == 2
    assert found[1] == "line 3: a quote is opened and never closed; the rest of the file was taken for this row"


def test_a_row_that_changed_after_listing(tmp_path: Path) -> None:
    for name, text in [("t.csv", f"image\n{BASE64}\n"), ("t.jsonl", json.dumps({"image": BASE64}))]:
        (tmp_path / name).write_text(text)
        [item] = listed(tmp_path / name)
        (tmp_path / name).write_text("x" * 50)
        assert "is truncated: it ends before this input does" in str(read(item))
        (tmp_path / name).write_text('"' * 5000)
        assert "was changed after the inputs were listed" in str(read(item)) or "there is no image" in str(read(item))
        (tmp_path / name).unlink()
        assert "cannot be read: No such file" in str(read(item))


def struct(count: int) -> dict[str, list[Any]]:
    pictures = [{"bytes": png(n), "path": f"{n}.png"} for n in range(count - 2)]
    pictures += [{"bytes": None, "path": "3.png"}, None]
    return {"image": pictures, "n": list(range(count)), "day": [date(2024, 1, 1)] * count, "raw": [b"x"] * count}


def check_struct(items: list[Any], keys: list[str], sources: list[str], others: tuple[str, ...] = ("n", "day")) -> None:
    assert [item.key for item in items] == keys and [item.source for item in items] == sources
    reader, count = Reader(), len(items)
    for index in [*range(count - 2), *reversed(range(count - 2))]:
        assert reader.data(items[index]) == png(index)
    assert read(items[-2]) == png(5) and read(items[-1]) == "there is no image in its row"
    assert items[1].columns == {name: {"n": 1, "day": "2024-01-01"}[name] for name in others}


def test_parquet_with_structs_of_bytes_and_path(tmp_path: Path) -> None:
    pq.write_table(pa.table(struct(9)), tmp_path / "t.parquet", row_group_size=2)
    expected = [f"{tmp_path / 't.parquet'}::{n}" for n in range(9)]
    check_struct(listed(tmp_path / "t.parquet"), [f"t/{n}" for n in range(9)], expected)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_with_a_column_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"photo": pa.array([png(n) for n in range(5)], kind)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    assert [read(item) for item in listed(tmp_path / "t.parquet")] == [png(n) for n in range(5)]


def test_parquet_with_a_column_of_paths(tmp_path: Path) -> None:
    dictionary = pa.array(["a/1.png", "3.png", None]).dictionary_encode()
    pq.write_table(pa.table({"path": dictionary, "caption": ["One.", None, ""]}), tmp_path / "t.parquet")
    items = listed(tmp_path / "t.parquet")
    assert [(item.key, item.caption) for item in items] == [("a/1", "One."), ("3", None), ("t/2", None)]
    assert read(items[0]) == png(7) and read(items[1]) == png(5)


def test_columns_of_other_types_are_rejected(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="the column 'image' has the type int64; expected bytes, strings"):
        listed(tmp_path / "t.parquet")
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="name it with image_column: x"):
        listed(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_the_error_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'mindone-share4v\[dataset\]'"):
        listed(tmp_path / name)


def test_image_root_applies_to_paths_in_structs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "1.png"}]}), tmp_path / "t.parquet")
    [item] = listed(tmp_path / "t.parquet", image_root=str(tmp_path / "a"))
    assert read(item) == png(7)


def test_a_damaged_parquet_file_is_one_failed_item(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and rubbish")
    [item] = listed(tmp_path / "t.parquet")
    assert "the table is damaged from row 0 on" in str(read(item))
    pq.write_table(pa.table({"image": [png(n) for n in range(4)]}), tmp_path / "t.parquet")
    items = listed(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"changed meanwhile")
    assert "t.parquet cannot be read" in str(read(items[0]))


def test_parquet_rows_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are right in any order; the column is read again only for a row far back."""
    count = 200
    pq.write_table(pa.table({"image": [png(n) for n in range(count)]}), tmp_path / "t.parquet")
    monkeypatch.setattr(parquet_table, "WINDOW_ROWS", 20)
    column = ParquetColumn(str(tmp_path / "t.parquet"), 0, "image")
    starts = []
    restart = column._restart
    monkeypatch.setattr(column, "_restart", lambda: (starts.append(1), restart()))
    rng = random.Random(1)
    order = sorted(range(count), key=lambda row: row + rng.uniform(0, 15))
    assert [column.row(row) for row in order] == [png(row) for row in order]
    assert not starts
    assert column.row(3) == png(3) and len(starts) == 1
    with pytest.raises(IndexError):
        column.row(count)


@pytest.mark.parametrize("write", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_in_both_formats(tmp_path: Path, write: Callable[..., Any]) -> None:
    table = pa.table(struct(9))
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, write(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    expected = [f"{tmp_path / 't.arrow'}::{n}" for n in range(9)]
    check_struct(listed(tmp_path / "t.arrow"), [f"t/{n}" for n in range(9)], expected)
    (tmp_path / "t.arrow").write_bytes((tmp_path / "t.arrow").read_bytes()[:700])
    assert "the table is damaged" in str(read(listed(tmp_path / "t.arrow")[-1]))


@pytest.fixture
def saved(tmp_path: Path) -> datasets.Dataset:
    datasets.disable_progress_bars()
    values = {name: column for name, column in struct(9).items() if name != "raw"}
    (tmp_path / "hf" / "one").mkdir(parents=True)
    return datasets.Dataset.from_dict(values).cast_column("image", datasets.Image(decode=False))


def test_a_directory_that_datasets_wrote(tmp_path: Path, saved: datasets.Dataset) -> None:
    (tmp_path / "hf" / "one" / "3.png").write_bytes(png(5))
    saved.save_to_disk(tmp_path / "hf" / "one", num_shards=3)
    items = listed(tmp_path / "hf" / "one")
    check_struct(items, [f"one/{n}" for n in range(9)], [f"{tmp_path}/hf/one::{n}" for n in range(9)])
    assert len({item.locator["path"] for item in items}) == 3


def test_a_shuffled_selection_keeps_its_order(tmp_path: Path, saved: datasets.Dataset) -> None:
    order = [5, 2, 6, 0]
    saved.select(order).save_to_disk(tmp_path / "hf" / "two")
    assert [read(item) for item in listed(tmp_path / "hf" / "two")] == [png(n) for n in order]


def test_a_dictionary_of_splits(tmp_path: Path, saved: datasets.Dataset) -> None:
    datasets.DatasetDict(train=saved.select(range(3)), test=saved.select([4])).save_to_disk(tmp_path / "hf" / "both")
    items = listed(tmp_path / "hf" / "both")
    assert [item.key for item in items] == ["both/train/0", "both/train/1", "both/train/2", "both/test/0"]
    assert items[3].source == f"{tmp_path}/hf/both/test::0" and read(items[3]) == png(4)


def test_an_incomplete_directory(tmp_path: Path, saved: datasets.Dataset) -> None:
    saved.save_to_disk(tmp_path / "hf" / "three")
    state = tmp_path / "hf" / "three" / "state.json"
    good = json.loads(state.read_text())
    state.write_text(json.dumps({**good, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(InputError, match="an old format with a table of indices"):
        listed(tmp_path / "hf" / "three")
    state.write_text("{")
    with pytest.raises(InputError, match="the data set is incomplete"):
        listed(tmp_path / "hf" / "three")
    state.write_text(json.dumps(good))
    (tmp_path / "hf" / "three" / good["_data_files"][0]["filename"]).unlink()
    [item] = listed(tmp_path / "hf" / "three")
    assert "the table is damaged from row 0 on" in str(read(item))
