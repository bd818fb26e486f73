"""Item, Picture and Record: an input before it is read, as it was read, and when it is finished; as lines of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Frame = Union[bytes, "PILImage"]
ON_DISK = ("file", "video")  # kinds of locators of inputs that are a file of their own
# Half characters, which UTF-8 cannot hold, and what some readers of lines take for the end of one.
_ODD = re.compile("[\ud800-\udfff\x85\u2028\u2029]")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Item:
    """One input, before anything is read: enough to find its bytes again.

    Attributes:
        number: place in the input order.
        key: unique in the job, also where case and Unicode normalisation do not count; a relative path without
            extension, such as "cats/001", "shard-00003/000123" or "table/17".
        source: what a person would call it: "photos/cats/001.jpg", "shard.tar::000123.jpg", "table.parquet::17".
        locator: how its bytes are found again, JSON-able.
        columns: the record's other columns, JSON-able.
        caption: the existing caption, as it was when the job was listed.
    """

    number: int
    key: str
    source: str
    locator: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    caption: str | None = None

    @property
    def path(self) -> str | None:
        """The absolute path of the file that this input is; None for one inside a table or an archive."""
        return self.locator["path"] if self.locator.get("kind") in ON_DISK else None


@dataclass(frozen=True)
class Picture:
    """An input as it was read.

    Attributes:
        frames: what `load_image` takes: an image file's bytes, or a video's frames.
        sha256: of the file's bytes, hexadecimal.
        columns: what reading it taught, such as a video's length.
    """

    frames: tuple[Frame, ...]
    sha256: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One finished input: its captions, or the reason why there are none.

    Attributes:
        number, key, source: as its Item has them.
        captions: final texts, existing ones already joined; empty for a failure.
        error: why it failed, or None.
        model, dtype: what made the captions.
        prompts: what was asked, one a caption.
        settings: of the generation, JSON-able.
        sha256: of the picture's bytes; None where they could not be read.
        tokens: new tokens, one number a caption.
        seconds: from when its first caption joined the batch until its last one left it; 0 where an equal picture's
            caption served. It differs from run to run.
        finish_reasons: one a caption.
        notes: what is worth knowing: a retry, a required word that is missing, an existing caption that was kept.
        width, height: of the picture in pixels, as it is shown.
        columns: the item's, and what reading it taught.
        stands: whether an earlier pass over the job's inputs made it.
    """

    number: int
    key: str
    source: str
    captions: tuple[str, ...] = ()
    error: str | None = None
    model: str = ""
    dtype: str = ""
    prompts: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    tokens: tuple[int, ...] = ()
    seconds: float = 0.0
    finish_reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    stands: bool = False


_ITEM_FIELDS = tuple(one.name for one in fields(Item))
_RECORD_FIELDS = tuple(one.name for one in fields(Record))
_TUPLES = tuple(one.name for one in fields(Record) if str(one.type).startswith("tuple"))


def dumps(value: Any) -> str:
    r"""Return JSON on one line that any reader takes: no NaN, and odd characters as escapes.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.records import dumps
        >>> print(dumps({"name": "cafe\udcff", "score": float("nan")}))
        {"name":"cafe\udcff","score":null}
    """
    return _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", _dumps(value))


def portable_dumps(value: Any) -> str:
    r"""Return JSON as `dumps` does, for readers that know no half characters: `\udcff` becomes the text `\xff`."""
    text = _SURROGATE.sub(lambda found: "\\" + _escaped(found), _dumps(value))
    return _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _dumps(value: Any) -> str:
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError):
        return _ENCODER.encode(jsonable(value))


def jsonable(value: Any) -> Any:
    """Return the nearest thing that JSON has: no number becomes null, a time its ISO form; bytes become null."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (float, Decimal)):
        return float(value) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(one) for one in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return None if isinstance(value, (bytes, bytearray, memoryview)) else str(value)


def printable(text: str) -> str:
    r"""Return text that UTF-8 can hold: bytes of a file name that are no text become `\xff`.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.records import printable
        >>> print(printable("caf\udce9.jpg"))
        caf\xe9.jpg
    """
    return _SURROGATE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def to_line(entry: Item | Record) -> str:
    """Return an Item or a Record as one line of JSON, its line end included.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.records import Record, from_line, to_line
        >>> record = Record(0, "cats/1", "cats/1.jpg", ("A cat.",))
        >>> from_line(to_line(record)) == record
        True
    """
    names = _ITEM_FIELDS if isinstance(entry, Item) else _RECORD_FIELDS
    return dumps({name: getattr(entry, name) for name in names}) + "\n"


def from_line(line: str | bytes) -> Record:
    """Read a Record that `to_line` wrote; fields that a newer version added are passed over.

    Raises:
        ValueError: the line is not whole, or something else.
    """
    values = _read(line, _RECORD_FIELDS)
    for name in _TUPLES:
        if name in values:
            values[name] = tuple(values[name])
    return Record(**values)


def item_from_line(line: str | bytes) -> Item:
    """Read an Item that `to_line` wrote; errors as in `from_line`."""
    return Item(**_read(line, _ITEM_FIELDS))


def _read(line: str | bytes, names: tuple[str, ...]) -> dict[str, Any]:
    values = json.loads(line)
    if not isinstance(values, dict) or not {"number", "key", "source"} <= values.keys():
        shown = line if isinstance(line, str) else line.decode("utf-8", "replace")
        raise ValueError(f"expected a line with number, key and source, got {shown!r:.80}")
    return {name: values[name] for name in names if name in values}
