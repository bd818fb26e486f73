"""Items and records as JSON lines."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
