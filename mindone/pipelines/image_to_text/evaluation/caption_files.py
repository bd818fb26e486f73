"""Captions from files: JSON, JSON lines, CSV and COCO's JSON, one or several an image, brought together by key."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from mindone.models.share4v.suggestions import unknown

# Columns in the order in which they are looked for. "id" comes late: in COCO's annotations it is the annotation's own.
KEY_COLUMNS = ("key", "image_id", "image", "file_name", "filename", "image_path", "path", "file", "source", "url", "id")
CAPTION_COLUMNS = (
    "caption",
    "captions",
    "generated_text",
    "references",
    "refs",
    "text",
    "prediction",
    "answer",
    "cap",
    "raw",
)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson", ".jl")

Row = tuple[str, Mapping[str, Any]]  # where it stands, and its values


@dataclass
class CaptionFile:
    """What a file of captions holds.

    Attributes:
        path: the file.
        captions: key -> its captions, in the file's order.
        failed: keys of rows that say why there is no caption.
        columns: names of the columns that were read as key and caption.
        names: key -> the picture's file name, where the file tells it apart from the key.
    """

    path: str
    captions: dict[str, list[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    columns: tuple[str, str] = ("", "")
    names: dict[str, str] = field(default_factory=dict)


def read_captions(path: str | Path, key: str | None = None, caption: str | None = None) -> CaptionFile:
    """Read captions.

    Forms: .jsonl (an object a line), .csv and .tsv (a header, then rows), .json (a list of objects, an object
    `{key: caption}` or `{key: [captions]}`, or COCO's `{"images": ..., "annotations": ...}`). Rows of the same key, and
    lists, are several captions of one image. Rows with an `error` and no caption count as failed.

    Args:
        path: the file.
        key, caption: names of the columns; by default the first known one that the first row has.

    Raises:
        ValueError: the form is not known, a row lacks its key or caption, or there is none; the message says where.
        OSError: the file cannot be read.
    """
    place = Path(path)
    try:
        rows, names = _rows(place)
        return _collect(str(path), rows, names, key, caption)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text, at byte {error.start}: save it as UTF-8") from None


def match(predictions: CaptionFile, references: CaptionFile) -> tuple[dict[str, str], str]:
    """Say which prediction belongs to which reference.

    Keys are compared as they are. Only if none agrees are the pictures' file names, and then those without folder and
    ending.

    Returns:
        Key of a prediction -> key of a reference, and by what they were compared.

    Raises:
        ValueError: nothing agrees, or file names that would agree are not unique.
    """
    for by, form in _FORMS.items():
        ours, theirs = _by_form(predictions, form, by), _by_form(references, form, by)
        common = [name for name in ours if name in theirs]
        if common:
            for file, found in ((predictions, ours), (references, theirs)):
                twice = next((name for name in common if len(found[name]) > 1), None)
                if twice is not None:
                    raise ValueError(
                        f"{file.path}: {' and '.join(map(repr, found[twice][:3]))} are both {twice!r} by {by}, by "
                        "which the two files would be brought together: give both files the same keys"
                    )
            return {ours[name][0]: theirs[name][0] for name in common}, by
    raise ValueError(
        f"no key is in both files: {predictions.path} ({predictions.columns[0]}) has {_some(predictions.captions)}, "
        f"{references.path} ({references.columns[0]}) has {_some(references.captions)}. Name the columns with --key"
    )


def _some(keys: Iterable[str]) -> str:
    first = [repr(key) for _, key in zip(range(3), keys, strict=False)]
    return ", ".join(first) + ", ..." if first else "no captions"


def _file_name(file: CaptionFile, key: str) -> str:
    return PurePath(file.names.get(key, key).replace("\\", "/")).name


_FORMS: dict[str, Callable[[CaptionFile, str], str]] = {
    "keys": lambda file, key: key,
    "file names": lambda file, key: file.names.get(key, key),
    "file names without folders": _file_name,
    "file names without folders and endings": lambda file, key: PurePath(_file_name(file, key)).stem,
}


def _by_form(file: CaptionFile, form: Callable[[CaptionFile, str], str], by: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in file.captions:
        found.setdefault(form(file, key), []).append(key)
    return found


def _rows(path: Path) -> tuple[Iterator[Row], dict[str, str]]:
    """Return a file's rows, and the file names that COCO's form has of its images."""
    suffix = path.suffix.lower()
    if suffix in _DELIMITERS:
        return _table(path, _DELIMITERS[suffix]), {}
    if suffix in _LINES:
        return _lines(path), {}
    if suffix != ".json":
        known = ", ".join((".json", *_LINES, *_DELIMITERS))
        raise ValueError(f"{path}: captions are read from {known}; convert it to one of these")
    text = path.read_text(encoding="utf-8-sig")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # lines of JSON by another name
            return _lines(path), {}
        raise ValueError(f"{path}: no JSON, at line {error.lineno}: {error.msg}") from None
    return _document(path, values)


def _document(path: Path, values: Any) -> tuple[Iterator[Row], dict[str, str]]:
    names: dict[str, str] = {}
    if isinstance(values, Mapping) and isinstance(values.get("annotations"), list):
        for image in values.get("images") or ():
            if isinstance(image, Mapping) and "id" in image and image.get("file_name"):
                names[_key(image["id"])] = str(image["file_name"])
        values = values["annotations"]
    elif isinstance(values, Mapping):
        values = [{"key": key, "captions": texts} for key, texts in values.items()]
    if not isinstance(values, list):
        raise ValueError(f"{path}: expected a list of objects or an object, got a {type(values).__name__}")

    def rows() -> Iterator[Row]:
        for number, value in enumerate(values, 1):
            where = f"{path}, entry {number}"
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: expected an object, got {value!r:.60}")
            yield where, value

    return rows(), names


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: no JSON: {error.msg}") from None
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: expected an object, got {value!r:.60}")
            yield where, value


def _table(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: the row has another number of columns than the header")
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _collect(
    path: str, rows: Iterator[Row], names: dict[str, str], key: str | None, caption: str | None
) -> CaptionFile:
    made = CaptionFile(path, names=names)
    for where, row in rows:
        if not made.columns[0]:
            made.columns = _column(where, row, key, KEY_COLUMNS, "key"), ""
        if row.get(made.columns[0]) is None or row[made.columns[0]] == "":
            raise ValueError(f"{where}: no {made.columns[0]!r}; the row has {', '.join(map(repr, row))}")
        own = _key(row[made.columns[0]])
        if row.get("error") and not any(row.get(name) for name in (made.columns[1], caption, *CAPTION_COLUMNS) if name):
            made.failed.append(own)
            continue
        if not made.columns[1]:
            made.columns = made.columns[0], _column(where, row, caption, CAPTION_COLUMNS, "caption")
        texts = _texts(where, row.get(made.columns[1]), made.columns[1])
        made.captions.setdefault(own, []).extend(texts)
    if not made.captions:
        raise ValueError(f"{path}: no captions in it" + (f", {len(made.failed)} failures" if made.failed else ""))
    return made


def _column(where: str, row: Mapping[str, Any], wanted: str | None, known: tuple[str, ...], role: str) -> str:
    if wanted is None:
        found = next((name for name in known if row.get(name) is not None), None)
        if found is None:
            raise ValueError(
                f"{where}: none of {', '.join(map(repr, row))} is known as a {role}; name the column with --{role}"
            )
        return found
    if wanted not in row:
        raise ValueError(f"{where}: {unknown('column', wanted, row)}")
    return wanted


def _texts(where: str, value: Any, column: str) -> list[str]:
    if isinstance(value, str) and column.endswith("s") and value.lstrip().startswith("["):  # a list in a CSV's cell
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [value]
    texts = value if isinstance(value, list) else [value]
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None or value is None or not texts:
        raise ValueError(f"{where}: {column!r} is {value!r:.60}, expected a text or a list of texts")
    return list(texts)


def _key(value: Any) -> str:
    """Write a key as text, so that 42 and "42" are the same."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
