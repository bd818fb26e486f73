"""Names of columns in messages, and values of nested objects by dotted names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

MAX_SHOWN = 20  # columns in a message
_MAX_NAME = 60  # characters of a name in a message
_MAX_COMPARED = 2000  # columns that are compared with a misspelt name


def shown(columns: Collection[str]) -> str:
    """Return the names of columns for a message; of many, only the first are listed, and long names are cut.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.column_names import shown
        >>> shown(["a", "b"]), shown([str(number) for number in range(20_000)])[-16:]
        ('a, b', ' and 19,980 more')
    """
    names = list(columns)
    text = ", ".join(name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..." for name in names[:MAX_SHOWN])
    return text + (f" and {len(names) - MAX_SHOWN:,} more" if len(names) > MAX_SHOWN else "")


def suggestion(name: str, columns: Collection[str]) -> str:
    """Return " Did you mean ...?" for the column whose name is closest, or ""."""
    lower = {column.lower(): column for column in list(columns)[:_MAX_COMPARED]}
    close = get_close_matches(name.lower(), list(lower), n=1)
    return f" Did you mean {lower[close[0]]!r}?" if close and len(lower[close[0]]) <= _MAX_NAME else ""


def has(row: Mapping[str, Any], name: str) -> bool:
    """Return whether a row has a column, or a nested object has the value of a dotted name."""
    if name in row:
        return True
    head, dot, rest = name.partition(".")
    inner = row.get(head)
    return bool(dot) and isinstance(inner, Mapping) and has(inner, rest)


def value(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, or of a dotted name in nested objects; None if there is none.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.column_names import value
        >>> value({"meta": {"image": {"file": "a.png"}}}, "meta.image.file"), value({"a.b": 1}, "a.b"), value({}, "a.b")
        ('a.png', 1, None)
    """
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    inner = row.get(head)
    return value(inner, rest) if dot and isinstance(inner, Mapping) else None


def nested(row: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the values in objects one level down."""
    return [f"{name}.{inner}" for name, one in row.items() if isinstance(one, Mapping) for inner in one]
