"""Inputs that change while they are read, and lines without an end."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.jobs import listed, png
from helpers.limits import run_limited

from mindone.pipelines.image_to_text.dataset.readers import ItemError, Reader, lines
from mindone.pipelines.image_to_text.dataset.readers.lines import bounded_lines

LIST = """
from mindone.pipelines.image_to_text.dataset.readers import list_inputs, ReaderOptions
report(lambda path: [(item.key, item.locator["kind"]) for item in list_inputs([path], ReaderOptions())], sys.argv[1])
"""

SHORTENED = """
import os
from mindone.pipelines.image_to_text.dataset.readers import list_inputs, ReaderOptions

def kinds(path):
    found = []
    for item in list_inputs([path], ReaderOptions()):
        if not found:
            os.truncate(path, 20_000)
        found.append(item.locator["kind"])
    return found[-1]

report(kinds, sys.argv[1])
"""


def write_arrow(path: Path, rows: int = 200, stream: bool = True) -> Path:
    table = pa.table({"image": [png(n) + bytes(5000) for n in range(rows)], "note": [f"note {n}" for n in range(rows)]})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    return path


@pytest.mark.parametrize("stream", [True, False])
def test_an_arrow_file_that_is_shortened_fails_its_inputs(tmp_path: Path, stream: bool) -> None:
    """Reading beyond the end of a mapped file ends the process with SIGBUS."""
    path = write_arrow(tmp_path / "a.arrow", stream=stream)
    items, reader = listed(path), Reader()
    assert reader.data(items[0]).startswith(png(0))
    os.truncate(path, 20_000)
    for item in items[::20]:
        with pytest.raises(ItemError, match=r"a\.arrow cannot be read: the file was changed while it was read"):
            reader.data(item)


def test_an_arrow_file_that_is_shortened_while_it_is_listed(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", rows=3000)
    kind, found = run_limited(SHORTENED, str(path), megabytes=900)
    assert kind == "value" and "failure" in found, found  # not ended by SIGBUS


def test_a_deleted_arrow_file_is_still_read(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow")
    items, reader = listed(path), Reader()
    reader.data(items[0])
    path.unlink()
    assert reader.data(items[150]).startswith(png(150))


def test_lines_are_bounded() -> None:
    import io

    data = b"short\n" + b"x" * 3_000_000 + b"\nlast"
    found = list(bounded_lines(io.BytesIO(data), limit=100))
    assert found == [(b"short\n", 6), (None, 3_000_001), (b"last", 4)]
    assert list(bounded_lines(io.BytesIO(b"123\n1234"), limit=4)) == [(b"123\n", 4), (b"1234", 4)]


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_a_line_without_an_end_takes_no_memory_and_fails_alone(tmp_path: Path, suffix: str) -> None:
    """A gigabyte of zeros in the middle of a file, which take no space on the disk."""
    heads = {"txt": "1.png\n", "csv": "image\n1.png\n", "jsonl": '{"image": "1.png"}\n'}
    tails = {"txt": "\n2.png\n", "csv": "\n2.png\n", "jsonl": '\n{"image": "2.png"}\n'}
    path = tmp_path / f"inputs.{suffix}"
    with path.open("wb") as file:
        file.write(heads[suffix].encode())
        file.seek(2**30, os.SEEK_CUR)
        file.write(tails[suffix].encode())
    kind, found = run_limited(LIST, str(path), seconds=60, megabytes=800)
    assert kind == "value", found
    assert found.count("'failure'") == 1 and len(eval(found)) == 3


def test_a_table_goes_on_behind_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    path = tmp_path / "a.csv"
    path.write_text("image\n1.png\n" + "x" * 1000 + "\n2.png\n")
    monkeypatch.setattr(
        "mindone.pipelines.image_to_text.dataset.readers.csv_table.bounded_lines", lambda file: bounded_lines(file, 100)
    )
    items = listed(path)
    assert [item.locator["kind"] for item in items] == ["file", "failure", "file"]
    assert "more than the limit" in items[1].locator["error"]
