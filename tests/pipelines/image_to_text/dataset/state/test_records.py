"""Items and records as JSON lines, existing captions, and keys."""

from __future__ import annotations

import codecs
import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindone.pipelines.image_to_text.dataset.state.existing_captions import (
    MAX_CAPTION_BYTES,
    MODES,
    decode_caption,
    merge_captions,
    needs_caption,
    read_caption,
)
from mindone.pipelines.image_to_text.dataset.state.keys import (
    KeyRegistry,
    path_keys,
    safe_key,
    url_keys,
    without_suffix,
)
from mindone.pipelines.image_to_text.dataset.state.records import (
    Item,
    Record,
    dumps,
    item_from_line,
    jsonable,
    portable_dumps,
    printable,
    record_from_line,
    to_line,
)

# File names as Python represents them: any text, and surrogate escapes for bytes that are not UTF-8.
NAMES = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from([chr(0xDC80 + n) for n in range(128)]))
JSON = st.recursive(st.none() | st.booleans() | st.integers() | NAMES, lambda inner: st.lists(inner, max_size=3))


@given(NAMES, NAMES, st.dictionaries(NAMES, JSON, max_size=3), st.lists(NAMES, max_size=3))
def test_lines_round_trip(key: str, source: str, columns: dict[str, Any], captions: list[str]) -> None:
    item = Item(3, key, source, {"kind": "file", "path": source}, columns, key)
    record = Record(3, key, source, tuple(captions), None, settings={"stop": [key]}, notes=(source,), columns=columns)
    for line in (to_line(item), to_line(record)):
        assert line.encode().count(b"\n") == 1 and len(line.splitlines()) == 1  # UTF-8, one line for every reader
        assert b"\0" not in line.encode()
    assert item_from_line(to_line(item)) == item
    assert record_from_line(to_line(record)) == record == record_from_line(to_line(record).encode())


@given(st.dictionaries(NAMES, NAMES, max_size=3))
def test_portable_json_has_no_lone_surrogates(value: dict[str, str]) -> None:
    text = portable_dumps(value)
    assert "\\ud" not in text.replace("\\\\", "")
    back = json.loads(text.encode("utf-8").decode("utf-8"))
    assert back == {printable(key): printable(one) for key, one in value.items()}


def test_values_that_json_lacks_are_converted() -> None:
    value = {
        "a": float("nan"),
        "b": float("-inf"),
        "c": Decimal("1.5"),
        "d": datetime(2024, 5, 1),
        "e": b"x",
        3: (1, 2),
    }
    assert json.loads(dumps(value)) == {
        "a": None,
        "b": None,
        "c": 1.5,
        "d": "2024-05-01T00:00:00",
        "e": None,
        "3": [1, 2],
    }
    assert jsonable({"x": {1.5}, "y": (b"", None)}) == {"x": [1.5], "y": [None, None]}


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"number": 1}', '{"number":1,"key":"a","source":"b"', "\0\0\0"])
def test_malformed_lines_are_rejected(line: str) -> None:
    with pytest.raises(ValueError):
        record_from_line(line)


def test_fields_of_a_later_version_are_ignored() -> None:
    assert record_from_line('{"number":1,"key":"a","source":"b","new":[1]}') == Record(1, "a", "b")


def test_merging_captions() -> None:
    merged = {mode: merge_captions(mode, "old.", "new.") for mode in MODES}
    assert merged == {"skip": "old.", "overwrite": "new.", "append": "old. new.", "prepend": "new. old."}
    for mode in MODES:
        assert merge_captions(mode, None, " new. ") == "new." == merge_captions(mode, " \n", "new.")
        assert merge_captions(mode, "old.\n", "") == "old."
        assert needs_caption(mode, None) and needs_caption(mode, " \n")
    assert merge_captions("append", "a", "b", ", ") == "a, b"
    assert [needs_caption(mode, "old.") for mode in MODES] == [False, True, True, True]
    with pytest.raises(ValueError, match="skip, overwrite, append, prepend; got 'replace'"):
        needs_caption("replace", None)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"A cat.\n", "A cat."),
        (b"\r\n A cat.\r\nIt sleeps.\r\n", "A cat.\r\nIt sleeps."),
        (codecs.BOM_UTF8 + "Une chatte à lunettes\n".encode(), "Une chatte à lunettes"),
        (codecs.BOM_UTF16_LE + "猫".encode("utf-16-le"), "猫"),
        (codecs.BOM_UTF16_BE + "猫".encode("utf-16-be"), "猫"),
        (b"", None),
        (b" \n\n", None),
        (codecs.BOM_UTF8, None),
        (b"caf\xe9", "caf\udce9"),
    ],
)
def test_reading_existing_captions(tmp_path: Path, data: bytes, text: str | None) -> None:
    (tmp_path / "1.txt").write_bytes(data)
    assert read_caption(tmp_path / "1.txt") == text == decode_caption(data)


def test_missing_and_invalid_caption_files(tmp_path: Path) -> None:
    assert read_caption(tmp_path / "1.txt") is None
    (tmp_path / "2.txt").write_bytes(b"x" * (MAX_CAPTION_BYTES + 1))
    with pytest.raises(OSError, match=r"2\.txt is larger than a caption"):
        read_caption(tmp_path / "2.txt")
    (tmp_path / "3.txt").mkdir()
    with pytest.raises(IsADirectoryError):
        read_caption(tmp_path / "3.txt")


@given(NAMES)
def test_a_key_stays_inside_its_directory_and_within_name_limits(text: str) -> None:
    key = safe_key(text)
    parts = key.split("/")
    assert all(part not in ("", ".", "..") and "\0" not in part for part in parts)
    assert all(len(part.encode("utf-8", "surrogatepass")) <= 240 for part in parts)
    assert safe_key(key) == key


def test_keys_of_paths_and_urls() -> None:
    assert safe_key("../../etc/passwd") == "__/__/etc/passwd"
    assert safe_key("x" * 300) != safe_key("x" * 301) and safe_key("x" * 300).startswith("xxx")
    assert path_keys("/data/cats/1.b.JPG", "/data") == ("cats/1.b", "cats/1.b.JPG")
    assert path_keys("/other/1.jpg", "/data") == ("other/1", "other/1.jpg")
    assert path_keys("/database/1.jpg", "/data") == ("database/1", "database/1.jpg")
    assert url_keys("https://example.org:80/a%20b/c.png?size=1") == ("example.org/a b/c", "example.org/a b/c.png")
    assert url_keys("http://[bad/c.png")[1] == "http_/[bad/c.png"
    assert without_suffix(".jpg") == ".jpg" and without_suffix("a.tar.gz") == "a.tar"


def test_keys_and_sidecar_names_are_unique() -> None:
    registry = KeyRegistry()
    assert registry.claim("1", "1.jpg") == "1"
    assert registry.claim("1", "1.png") == "1.png"
    assert registry.claim("1", "1.png") == "1.png~2"
    assert registry.claim("1", "1.PNG") == "1.PNG~3"  # the same name if case is ignored
    assert registry.claim("caf\u00e9", "caf\u00e9.jpg") == "caf\u00e9"
    assert (
        registry.claim("cafe\u0301", "cafe\u0301.jpg") == "cafe\u0301.jpg"
    )  # the same text in another Unicode normalization
    assert registry.claim("a/2", "a/2.jpg", "/data") == "a/2"
    assert registry.claim("b/2", "b/2.png", "/data") == "b/2.png"  # /data/2.txt is taken
    assert registry.claim("c/2", "c/2.png", "/other") == "c/2"
    assert registry.claim("\udcff", "\udcff.jpg") == "\udcff"
    assert registry.claim_name("/x") and not registry.claim_name("/x")
    registry.close()


def test_thousands_of_equal_names_are_claimed_quickly() -> None:
    registry = KeyRegistry()
    keys = [registry.claim("1", "1.jpg") for _ in range(3000)]
    assert len(set(keys)) == 3000 and keys[-1] == "1.jpg~2999"
    registry.close()
