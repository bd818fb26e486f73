"""Issue 12, finding 4: one bad input, row, member or file fails alone, and never ends or hangs a job."""

from __future__ import annotations

import ast
import gzip
import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import png, write_tar
from helpers.limits import run_limited

pa = pytest.importorskip("pyarrow")

READ = """
from mindone.pipelines.image_to_text.dataset.readers import ItemError, Reader, ReaderOptions, list_inputs
def outcomes(*paths):
    reader, found = Reader(), []
    for item in list_inputs(paths, ReaderOptions()):
        try:
            found.append(len(reader.data(item)) and "ok")
        except ItemError as error:
            found.append(str(error)[:90])
    return found
report(outcomes, *sys.argv[1:])
"""


def outcomes(*paths: Path) -> list[str]:
    """List and read everything in a process of its own; return "ok" or the reason for each input."""
    kind, message = run_limited(READ, *map(str, paths))
    assert kind == "value", f"{kind}: {message}"
    found: list[str] = ast.literal_eval(message)
    return found


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """An input that must be read whatever lies beside it."""
    path = tmp_path / "good.png"
    path.write_bytes(png(1))
    return path


# Arrow: numbers that lead out of the buffers.
ROWS = 4
IMAGES = [png(number) for number in range(ROWS)]


def arrow_columns() -> dict[str, tuple[Any, bytes]]:
    """Columns, and bytes of the file to overwrite: the last offset or index of each."""
    offsets = struct.pack("<5i", 0, *(sum(map(len, IMAGES[: n + 1])) for n in range(ROWS)))
    texts = ["a" * 11, "b" * 13, "c" * 17, "d" * 19]
    return {
        "binary": (pa.array(IMAGES, pa.binary()), offsets),
        "struct": (pa.array([{"bytes": one, "path": None} for one in IMAGES]), offsets),
        "string": (pa.array(texts), struct.pack("<5i", 0, 11, 24, 41, 60)),
        "large_string": (pa.array(texts, pa.large_string()), struct.pack("<5q", 0, 11, 24, 41, 60)),
        "list": (pa.array([[n] * (n + 3) for n in range(ROWS)]), struct.pack("<5i", 0, 3, 7, 12, 18)),
        "dictionary": (pa.array(texts).dictionary_encode(), struct.pack("<4i", 0, 1, 2, 3)),
        "texts": (pa.array([[one, one] for one in texts]), struct.pack("<9i", 0, 11, 22, 35, 48, 65, 82, 101, 120)),
    }


def write_arrow(path: Path, columns: dict[str, Any], file_format: bool = False) -> Path:
    table = pa.table(columns)
    opener = pa.ipc.new_file if file_format else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, opener(sink, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("file_format", [False, True], ids=["stream", "file"])
@pytest.mark.parametrize("value", [2**30, -(2**30), 2**31 - 1])
@pytest.mark.parametrize("name", list(arrow_columns()))
def test_tampered_arrow_offsets(tmp_path: Path, good: Path, name: str, value: int, file_format: bool) -> None:
    column, searched = arrow_columns()[name]
    images = {} if name in ("binary", "struct") else {"image": pa.array(IMAGES)}
    path = write_arrow(tmp_path / "t.arrow", images | {"image" if not images else name: column}, file_format)
    data = path.read_bytes()
    position = data.index(searched)
    width = len(searched) // (9 if name == "texts" else 4 if name == "dictionary" else 5)
    for index in (1, 2, 3):
        place = position + index * width
        changed = data[:place] + value.to_bytes(width, "little", signed=True) + data[place + width :]
        path.write_bytes(changed)
        found = outcomes(path, good)
        assert found[-1] == "ok" and len(found) >= 2
        assert any(one != "ok" for one in found[:-1])


def test_tampered_arrow_bytes_anywhere(tmp_path: Path, good: Path) -> None:
    """Each 4 bytes of the file in turn, in one process; a crash would end it."""
    code = """
from pathlib import Path
from mindone.pipelines.image_to_text.dataset.readers import ItemError, Reader, ReaderOptions, InputError, list_inputs
def attempts(path):
    path, count = Path(path), 0
    data = path.read_bytes()
    for place in range(0, len(data) - 4, 4):
        for value in (b"\\xff\\xff\\xff\\x7f", b"\\0\\0\\0\\x80", b"\\x01\\x02\\0\\0"):
            path.write_bytes(data[:place] + value + data[place + 4:])
            reader = Reader()
            try:
                for item in list_inputs([str(path)], ReaderOptions()):
                    try:
                        reader.data(item)
                    except ItemError:
                        pass
                count += 1
            except InputError:
                count += 1
    return count > 300
report(attempts, sys.argv[1])
"""
    columns = {
        "image": pa.array([b"\x89PNG"] * 3),
        "note": pa.array(["a", "b", None]),
        "n": pa.array([[1], [2, 3], []]),
    }
    path = write_arrow(tmp_path / "t.arrow", columns)
    assert run_limited(code, str(path), seconds=120) == ("value", "True")


# Cells that Arrow stores and Python cannot represent.
def odd_cells() -> dict[str, Any]:
    integers = pa.array([1, 2**62, 2, 3])
    bad_text = pa.array([b"a", b"\xff\xfe", b"b", b"c"]).view(pa.string())
    return {
        "text": bad_text,
        "large text": pa.array([b"a", b"\xff\xfe", b"b", b"c"], pa.large_binary()).view(pa.large_string()),
        "texts": pa.ListArray.from_arrays([0, 1, 2, 3, 4], bad_text),
        "text in a struct": pa.StructArray.from_arrays([bad_text], ["a"]),
        "dictionary": (encoded := pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3]), bad_text)),
        "dictionary in lists": pa.ListArray.from_arrays([0, 1, 2, 3, 4], encoded),
        "dictionary in a struct": pa.StructArray.from_arrays([encoded], ["a"]),
        **{f"timestamp {unit}": integers.view(pa.timestamp(unit)) for unit in ("s", "ms", "us")},
        "timestamp with time zone": integers.view(pa.timestamp("us", "Europe/Paris")),
        "duration s": integers.view(pa.duration("s")),
        "duration ms": integers.view(pa.duration("ms")),
        "date32": pa.array([1, 2**31 - 1, 2, 3], pa.int32()).view(pa.date32()),
        "date64": integers.view(pa.date64()),
        "time32": pa.array([1, 2**31 - 1, 2, 3], pa.int32()).view(pa.time32("s")),
        "time64": integers.view(pa.time64("us")),
        "decimal": pa.array([b"\0" * 16, b"\x7f" * 16, b"\0" * 16, b"\0" * 16], pa.binary(16)).view(pa.decimal128(5)),
    }


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
@pytest.mark.parametrize("name", list(odd_cells()))
def test_an_odd_cell_fails_its_row(tmp_path: Path, good: Path, name: str, suffix: str) -> None:
    from pyarrow import parquet

    table = pa.table({"image": pa.array(IMAGES), "odd": odd_cells()[name]})
    path = tmp_path / f"t.{suffix}"
    if suffix == "arrow":
        write_arrow(path, {"image": table["image"], "odd": table["odd"]})
    else:
        try:
            parquet.write_table(table, path)
        except pa.ArrowException:
            pytest.skip("Parquet cannot store it")
    found = outcomes(path, good)
    assert [found[0], *found[2:]] == ["ok"] * ROWS, found
    assert found[1] == "ok" or found[1].startswith("the column 'odd' has a value that cannot be read")


def test_a_dictionary_in_every_row_group_of_a_parquet_file(tmp_path: Path, good: Path) -> None:
    """Several row groups, columns of the same name, and one called like the metadata that is left out."""
    from pyarrow import parquet

    texts = pa.array([b"\xff" if number in (2, 9) else b"text" for number in range(12)]).view(pa.string())
    images, encoded = pa.array(IMAGES[:1] * 12), texts.dictionary_encode()
    table = pa.Table.from_arrays([images, encoded, encoded, encoded], ["image", "a", "a", "ARROW:schema"])
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=8)
    found = outcomes(tmp_path / "t.parquet", good)
    assert [number for number, outcome in enumerate(found) if outcome != "ok"] == [2, 9] and len(found) == 13


@pytest.mark.parametrize("zone", ["Mars/Olympus", "+99:99", "\0", "../../etc/passwd", ""])
@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_an_unknown_time_zone(tmp_path: Path, good: Path, zone: str, suffix: str) -> None:
    """No row of the column can be read; the table's end is reached, and the other input is read."""
    from pyarrow import parquet

    odd = pa.array([1, 2, 3, 4]).view(pa.timestamp("us", zone))
    path = tmp_path / f"t.{suffix}"
    if suffix == "arrow":
        write_arrow(path, {"image": pa.array(IMAGES), "odd": odd})
    else:
        parquet.write_table(pa.table({"image": pa.array(IMAGES), "odd": odd}), path)
    found = outcomes(path, good)
    assert len(found) == ROWS + 1 and found[-1] == "ok"


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_a_path_that_is_not_utf8(tmp_path: Path, good: Path, suffix: str) -> None:
    from pyarrow import parquet

    paths = pa.array([b"good.png", b"\xff\xfe", b"missing.png", b"good.png"]).view(pa.string())
    for column in (paths, pa.StructArray.from_arrays([pa.array([None] * 4, pa.binary()), paths], ["bytes", "path"])):
        path = tmp_path / f"t.{suffix}"
        if suffix == "arrow":
            write_arrow(path, {"image": column})
        else:
            parquet.write_table(pa.table({"image": column}), path)
        found = outcomes(path)
        assert (found[0], found[3], len(found)) == ("ok", "ok", 4) and "ok" not in found[1:3]


# Tar headers.
def header(kind: bytes, size: int, name: str = "a.png") -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("size", [2**62, 2**40, 2**21, -1, -512])
@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"0", b"S", b"V", b"D"])
def test_a_tar_header_with_an_absurd_size(tmp_path: Path, good: Path, kind: bytes, size: int, compressed: bool) -> None:
    write_tar(tmp_path / "s.tar", [("0.png", png(0)), ("1.png", png(1))])
    data = (tmp_path / "s.tar").read_bytes()
    end = data.rindex(b"1.png") + 1024
    bad = header(kind, size)
    hostile = data[:end] + bad + bytes(1024) + data
    path = tmp_path / ("bad.tar.gz" if compressed else "bad.tar")
    path.write_bytes(gzip.compress(hostile) if compressed else hostile)
    found = outcomes(path, good)
    assert found[:2] == ["ok", "ok"] and found[-1] == "ok" and len(found) < 10


@pytest.mark.parametrize(
    "text", ["size=-512", "size=99999999999999999999", "size=x", "path=", "mtime=nan", "GNU.sparse.map=,"]
)
def test_an_extended_header_with_an_odd_value(tmp_path: Path, good: Path, text: str) -> None:
    record = f" {text}\n".encode()
    length = next(n for n in range(len(record), 200) if len(str(n)) + len(record) == n)
    pax = f"{length}".encode() + record
    member = header(b"x", len(pax)) + pax.ljust(512, b"\0") + header(b"0", 3) + b"abc".ljust(512, b"\0")
    path = tmp_path / "bad.tar"
    path.write_bytes(member * 3 + bytes(1024))
    found = outcomes(path, good)
    assert found[-1] == "ok" and 2 <= len(found) < 10


def test_extended_headers_behind_each_other(tmp_path: Path, good: Path) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes((header(b"L", 5) + b"a.png".ljust(512, b"\0")) * 5000 + bytes(1024))
    found = outcomes(path, good)
    assert len(found) == 2 and found[-1] == "ok"


# Files that are not regular.
SUFFIXES = ("png", "txt", "lst", "json", "jsonl", "csv", "tsv", "parquet", "arrow", "tar", "tar.gz", "mp4")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["fifo", "device", "link to a fifo"])
def test_a_fifo_or_a_device(tmp_path: Path, good: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"bad.{suffix}"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    found = outcomes(path, good)
    assert len(found) == 2 and "not a regular file" in found[0] and found[1] == "ok"


@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "file:///dev/zero", "caption"])
def test_a_list_that_names_a_fifo_or_a_device(tmp_path: Path, good: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "caption.png").write_bytes(png(2))
    os.mkfifo(tmp_path / "caption.txt")
    text = "caption.png" if name == "caption" else name
    (tmp_path / "list.txt").write_text(f"{text}\ngood.png\n")
    found = outcomes(tmp_path / "list.txt")
    assert len(found) == 2 and "not a regular file" in found[0] and found[1] == "ok"


def test_a_data_set_of_fifos(tmp_path: Path, good: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    os.mkfifo(folder / "data.arrow")
    found = outcomes(folder, good)
    assert len(found) == 2 and "not a regular file" in found[0] and found[1] == "ok"


# Rows of text tables and lists.
DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    "row",
    [
        '{"image": "file://[a"}',
        '{"image": "http://[a"}',
        '{"image": "a\\ud800.png"}',
        '{"image": "\\u0000"}',
        json.dumps({"image": "a" * 5000}),
        json.dumps({"image": "/" + "a/" * 5000}),
        f'{{"image": {DEEP}}}',
        f'{{"image": "good.png.missing", "n": {DEEP}}}',
        '{"image": 1e999}',
        '{"image": {"path": {"path": 1}}}',
        '{"image": "good.png.missing", "n": ' + "9" * 4000 + "}",
        '{"image": ' + "9" * 5000 + "}",
    ],
)
def test_an_odd_row_of_a_json_table(tmp_path: Path, good: Path, row: str) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"image": "good.png"}}\n{row}\n{{"image": "good.png"}}\n')
    found = outcomes(tmp_path / "t.jsonl")
    assert (found[0], found[2], len(found)) == ("ok", "ok", 3) and found[1] != "ok"


@pytest.mark.parametrize("write", [lambda text: text, lambda text: f'image\n"{text}"\n'], ids=["list", "csv"])
@pytest.mark.parametrize("text", ["file://[a", "http://[a", "a" * 5000, "\udcff", "/" + "a/" * 5000])
def test_an_odd_path(tmp_path: Path, good: Path, text: str, write: Callable[[str], str]) -> None:
    path = tmp_path / ("t.txt" if write(text) == text else "t.csv")
    path.write_bytes(os.fsencode(write(text)) + b"\ngood.png\n")
    found = outcomes(path)
    assert len(found) == 2 and found[0] != "ok" and found[1] == "ok"
