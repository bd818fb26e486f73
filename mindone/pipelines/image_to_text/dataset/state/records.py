"""Item, Picture and Record: an input as it was listed, its contents, and its captions; and their JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any, Union

from .bounded_reading import parse_json
from .skipped import SkippedGroup

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Frame = Union[bytes, "PILImage"]
ON_DISK = ("file", "video")  # locator kinds of inputs that are separate files
# Lone surrogates, which UTF-8 cannot encode, and characters that some readers take for line ends.
_ESCAPED = re.compile("[\ud800-\udfff\x85\u2028\u2029]")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Item:
    """One input before it is read, with what is needed to read it.

    Attributes:
        number: index in the input order.
        key: relative path without extension, such as "cats/001", "shard-00003/000123" or "table/17"; unique in the job,
            even if case and Unicode normalization are ignored.
        source: name for people: "photos/cats/001.jpg", "shard.tar::000123.jpg", "table.parquet::17".
        locator: how to find its bytes, JSON-able.
        columns: other columns of its row, JSON-able.
        caption: existing caption at the time of the listing.
    """

    number: int
    key: str
    source: str
    locator: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    caption: str | None = None

    @property
    def path(self) -> str | None:
        """Absolute path of the input's file; None if the input is inside a table or an archive."""
        return self.locator["path"] if self.locator.get("kind") in ON_DISK else None

    @property
    def place(self) -> str:
        """The source with an absolute path, however it was written; with the key if other rows may have the file."""
        path = self.locator.get("path")
        if not isinstance(path, str):
            return self.source
        _, mark, member = self.source.partition("::")
        if self.columns:
            return f"{path}{mark}{member}::{self.key}"
        return path if self.locator.get("kind") in ON_DISK else path + mark + member


@dataclass(frozen=True)
class Picture:
    """The contents of an input, as a `Reader` returns them.

    Attributes:
        frames: inputs of `load_image`: the bytes of one image file, or the frames of a video.
        sha256: hexadecimal digest of the file's bytes.
        columns: further columns that reading it adds, such as a video's duration.
        download: as of a Record.
    """

    frames: tuple[Frame, ...]
    sha256: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    download: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """The result of one input: its captions, or the reason why it failed.

    What reads an input begins its record (`readers.read_task`), and what captions it completes that. A record with
    neither captions nor an error is incomplete, and stays with the executor that works on it.

    Attributes:
        number, key, source: as in its Item.
        captions: final texts, already combined with an existing caption; empty after a failure.
        error: reason of the failure, or None.
        model, dtype: model that generated the captions, and its precision.
        prompts: prompt of each caption.
        settings: generation settings, JSON-able.
        sha256: hexadecimal digest of the image's bytes; None if they could not be read.
        tokens: number of new tokens of each caption.
        seconds: time from when its first caption joined the batch until its last one left it; 0 if the captions of an
            identical image were reused. It differs from run to run.
        finish_reasons: finish reason of each caption.
        notes: remarks, such as a retry, a missing required word, or an existing caption that was kept.
        width, height: size of the image in pixels, as displayed.
        columns: columns of the item, and those that reading it added.
        stands: whether an earlier pass over the job's inputs made this record.
        place: as in its Item; empty in a record of an older version.
        usage: what the captions cost at an endpoint, "requests", "prompt_tokens" and "completion_tokens", with those
            of failed attempts; empty if this process made them, or if an equal image's were reused.
        texts: name of each caption, in a job with named texts; empty otherwise.
        rejected: captions that broke a rule, in a job that does not write such captions; `error` names the rule.
        download: of an image at a URL: number of "attempts" and "status" of the last response, if there was one.
        image_hash: perceptual hash of the image, or of a frame in the middle of a video; see `audit/image_hash.py`.
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
    place: str = ""
    usage: Mapping[str, int] = field(default_factory=dict)
    rejected: tuple[str, ...] = ()
    download: Mapping[str, int] = field(default_factory=dict)
    image_hash: str | None = None
    texts: tuple[str, ...] = ()

    @property
    def new_tokens(self) -> int:
        """Number of tokens that were generated for it; 0 if its captions are those of an equal image."""
        return sum(self.tokens) if self.seconds else 0


class JobError(RuntimeError):
    """A job cannot start or resume; the message says what to do."""


class JobRunningError(JobError):
    """Another process is working on the job."""


@dataclass(frozen=True)
class JobSummary:
    """Result of a job, or of one process of a distributed job.

    Attributes:
        inputs: number of inputs.
        captioned: number of inputs that this run captioned.
        kept: number of inputs whose existing caption this run kept.
        failed: number of inputs that failed, in this run or an earlier one.
        seconds: duration of this run.
        tokens: number of tokens that this run generated.
        left_out: inputs that an output cannot contain, with the reasons; at most a hundred per output.
        is_share: whether the numbers are those of one process instead of the whole job.
        breaking_rules: number of inputs for which no attempt gave captions that keep all rules, in this run or an
            earlier one; with `on_fault="fail"` they are among the failed ones.
        state: the job's state directory, with failed.jsonl.
        skipped: what the inputs contain that was not captioned, by reason.
        preview: with `dry_run`, what the job would do; nothing was done then.
        usage: what the job's captions cost at endpoints, as in Record, in this run and earlier ones.
    """

    inputs: int
    captioned: int
    kept: int
    failed: int
    seconds: float
    tokens: int
    left_out: tuple[str, ...] = ()
    is_share: bool = False
    breaking_rules: int = 0
    state: str = ""
    skipped: tuple[SkippedGroup, ...] = ()
    preview: JobPreview | None = None
    usage: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class InputPreview:
    """What a job would do with an input.

    Attributes:
        source: the input, for people.
        action: "caption", "retry" (it failed before), "keep" (it has a caption), "done" (it has a record) or "fail".
        prompts: what would be asked; empty unless it would be captioned.
        beginning: text that its captions would begin with.
        error: why it would fail, or why it failed before.

    Example:
        >>> from mindone.pipelines.image_to_text import InputPreview
        >>> InputPreview("photos/1.jpg", "caption", ("Describe this image",)).error is None
        True
    """

    source: str
    action: str
    prompts: tuple[str, ...] = ()
    beginning: str = ""
    error: str | None = None


@dataclass(frozen=True)
class JobPreview:
    """What a job would do; the result of a dry run.

    Attributes:
        actions: action of an InputPreview -> number of inputs.
        first: the first inputs.
        outputs: what would be written.
        unknown: what the job would do that is not known before it reads the images.

    Example:
        >>> from mindone.pipelines.image_to_text import caption_dataset
        >>> summary = caption_dataset("photo.jpg", out="preview.jsonl", dry_run=True)
        >>> summary.preview.actions, summary.preview.outputs
        ({'caption': 1}, ('preview.jsonl',))
    """

    actions: Mapping[str, int]
    first: tuple[InputPreview, ...]
    outputs: tuple[str, ...]
    unknown: tuple[str, ...] = ()


_ITEM_FIELDS = tuple(one.name for one in fields(Item))
_RECORD_FIELDS = tuple(one.name for one in fields(Record))
_OPTIONAL = ("usage", "download")  # left out of a line if they are empty
_TUPLES = tuple(one.name for one in fields(Record) if str(one.type).startswith("tuple"))


def dumps(value: Any) -> str:
    r"""Return JSON on one line for any reader: null in place of NaN, and unusual characters as escapes.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.records import dumps
        >>> print(dumps({"name": "cafe\udcff", "score": float("nan")}))
        {"name":"cafe\udcff","score":null}
    """
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", _dumps(value))


def portable_dumps(value: Any) -> str:
    r"""Return JSON as `dumps` does, for readers that reject lone surrogates: `\udcff` becomes the text `\xff`."""
    text = _SURROGATE.sub(lambda found: "\\" + _escape(found), _dumps(value))
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _dumps(value: Any) -> str:
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError):
        return _ENCODER.encode(jsonable(value))


def jsonable(value: Any) -> Any:
    """Return the nearest JSON value: NaN and bytes become null, dates and times ISO strings, other objects strings."""
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
    r"""Return text that UTF-8 can encode: bytes of a file name that are not text become escapes such as `\xff`.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.records import printable
        >>> print(printable("caf\udce9.jpg"))
        caf\xe9.jpg
    """
    return _SURROGATE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def to_line(entry: Item | Record) -> str:
    """Return an Item or a Record as one line of JSON, including the line end.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.records import Record, record_from_line, to_line
        >>> record = Record(0, "cats/1", "cats/1.jpg", ("A cat.",))
        >>> record_from_line(to_line(record)) == record
        True
    """
    names = _ITEM_FIELDS if isinstance(entry, Item) else _RECORD_FIELDS
    values = {name: getattr(entry, name) for name in names}
    return dumps({name: value for name, value in values.items() if value or name not in _OPTIONAL}) + "\n"


def record_from_line(line: str | bytes) -> Record:
    """Read a Record that `to_line` wrote; unknown fields, which a newer version may add, are ignored.

    Raises:
        ValueError: the line is incomplete, or is not a record.
    """
    values = _read(line, _RECORD_FIELDS)
    for name in _TUPLES:
        if name in values:
            values[name] = tuple(values[name])
    return Record(**values)


def item_from_line(line: str | bytes) -> Item:
    """Read an Item that `to_line` wrote; errors as in `record_from_line`."""
    return Item(**_read(line, _ITEM_FIELDS))


def _read(line: str | bytes, names: tuple[str, ...]) -> dict[str, Any]:
    values = parse_json(line)
    if not isinstance(values, dict) or not {"number", "key", "source"} <= values.keys():
        shown = line if isinstance(line, str) else line.decode("utf-8", "replace")
        raise ValueError(f"expected a line with number, key and source, got {shown!r:.80}")
    return {name: values[name] for name in names if name in values}
