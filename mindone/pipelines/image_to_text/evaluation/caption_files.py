"""Reading captions from JSON, JSON Lines, CSV and COCO files, and matching the images of two files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from mindone.models.share4v.suggestions import unknown

from ..dataset.state.regular_files import open_input_text

# Known column names by priority. "id" is last, because in COCO annotations it identifies the annotation.
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

Row = tuple[str, Mapping[str, Any]]  # its position for messages, and its values


@dataclass
class CaptionFile:
    """The captions in a file.

    Attributes:
        path: path of the file.
        captions: key -> captions, in the order of the file.
        failed: keys of rows with an error instead of a caption.
        columns: names of the key column and the caption column.
        names: key -> file name of the image, if the file has both.
    """

    path: str
    captions: dict[str, list[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    columns: tuple[str, str] = ("", "")
    names: dict[str, str] = field(default_factory=dict)


def read_captions(path: str | Path, key: str | None = None, caption: str | None = None) -> CaptionFile:
    """Read captions.

    Formats: .jsonl (one object per line), .csv and .tsv (with a header), and .json (a list of objects, an object
    `{key: caption}` or `{key: [captions]}`, or COCO's `{"images": ..., "annotations": ...}`). Several rows with
    one key, and lists, are several captions of one image. Rows with an `error` and no caption count as failed.

    Args:
        path: path of the file.
        key, caption: names of the columns; by default the first known column that the first row has.

    Raises:
        ValueError: unknown format, a row without key or caption, or no captions; the message names the position.
        OSError: the file cannot be read.
    """
    try:
        rows, names = _rows(Path(path))
        return _collect(str(path), rows, names, key, caption)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text, at byte {error.start}: save it as UTF-8") from None


def match(predictions: CaptionFile, references: CaptionFile) -> tuple[dict[str, str], str]:
    """Match the images of predictions and references.

    Keys are compared first; if none match, the file names of the images, then file names without folders, then file
    names without folders and extensions.

    Returns:
        Key in the predictions -> key in the references, and what was compared.

    Raises:
        ValueError: nothing matches, or matching file names are not unique.
    """
    for compared, name_of in _COMPARISONS.items():
        ours, theirs = _keys_by_name(predictions, name_of), _keys_by_name(references, name_of)
        common = [name for name in ours if name in theirs]
        if common:
            for file, keys in ((predictions, ours), (references, theirs)):
                ambiguous = next((name for name in common if len(keys[name]) > 1), None)
                if ambiguous is not None:
                    raise ValueError(
                        f"{file.path}: {' and '.join(map(repr, keys[ambiguous][:3]))} are both {ambiguous!r} when "
                        f"compared by {compared}: give both files the same keys"
                    )
            return {ours[name][0]: theirs[name][0] for name in common}, compared
    raise ValueError(
        "the files have no key in common: "
        f"{predictions.path} ({predictions.columns[0]}) has {_first(predictions.captions)}; "
        f"{references.path} ({references.columns[0]}) has {_first(references.captions)}. Name the columns with --key"
    )


def _first(keys: Iterable[str]) -> str:
    first = [repr(key) for _, key in zip(range(3), keys, strict=False)]
    return ", ".join(first) + ", ..." if first else "no captions"


def _file_name(file: CaptionFile, key: str) -> str:
    return PurePath(file.names.get(key, key).replace("\\", "/")).name


# What is compared -> function of a file and a key.
_COMPARISONS: dict[str, Callable[[CaptionFile, str], str]] = {
    "keys": lambda file, key: key,
    "file names": lambda file, key: file.names.get(key, key),
    "file names without folders": _file_name,
    "file names without folders and endings": lambda file, key: PurePath(_file_name(file, key)).stem,
}


def _keys_by_name(file: CaptionFile, name_of: Callable[[CaptionFile, str], str]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for key in file.captions:
        keys.setdefault(name_of(file, key), []).append(key)
    return keys


def _rows(path: Path) -> tuple[Iterator[Row], dict[str, str]]:
    """Return the rows of a file, and the image file names if it is in COCO format."""
    suffix = path.suffix.lower()
    if suffix in _DELIMITERS:
        return _table(path, _DELIMITERS[suffix]), {}
    if suffix in _LINES:
        return _lines(path), {}
    if suffix != ".json":
        known = ", ".join((".json", *_LINES, *_DELIMITERS))
        raise ValueError(f"{path}: unknown format; expected a file that ends in {known}")
    with open_input_text(path) as file:
        text = file.read()
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON Lines with the suffix .json
            return _lines(path), {}
        raise ValueError(f"{path}: not JSON, at line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # numbers and nesting beyond Python's limits
        raise ValueError(f"{path}: not JSON: {error}") from None
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
    with open_input_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not JSON: {error}") from None
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: expected an object, got {value!r:.60}")
            yield where, value


def _table(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with open_input_text(path, newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: the row and the header have different numbers of columns")
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _collect(
    path: str, rows: Iterator[Row], names: dict[str, str], key: str | None, caption: str | None
) -> CaptionFile:
    file = CaptionFile(path, names=names)
    key_column = caption_column = ""  # determined by the first row that needs them
    for where, row in rows:
        key_column = key_column or _column(where, row, key, KEY_COLUMNS, "key")
        if row.get(key_column) in (None, ""):
            raise ValueError(f"{where}: no {key_column!r}; the row has {', '.join(map(repr, row))}")
        row_key = _key(row[key_column])
        caption_columns = (caption_column, caption or "", *CAPTION_COLUMNS)
        if row.get("error") and not any(row.get(name) for name in caption_columns if name):
            file.failed.append(row_key)
            continue
        caption_column = caption_column or _column(where, row, caption, CAPTION_COLUMNS, "caption")
        file.captions.setdefault(row_key, []).extend(_texts(where, row.get(caption_column), caption_column))
    if not file.captions:
        failures = f", only {len(file.failed)} failures" if file.failed else ""
        raise ValueError(f"{path}: the file has no captions{failures}")
    file.columns = (key_column, caption_column)
    return file


def _column(where: str, row: Mapping[str, Any], requested: str | None, known: tuple[str, ...], role: str) -> str:
    if requested is None:
        found = next((name for name in known if row.get(name) is not None), None)
        if found is None:
            raise ValueError(
                f"{where}: no known {role} column among {', '.join(map(repr, row))}; name it with --{role}"
            )
        return found
    if requested not in row:
        raise ValueError(f"{where}: {unknown('column', requested, row)}")
    return requested


def _texts(where: str, value: Any, column: str) -> list[str]:
    if isinstance(value, str) and column.endswith("s") and value.lstrip().startswith("["):  # a list in a CSV cell
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
    texts = value if isinstance(value, list) else [value]
    invalid = next((text for text in texts if not isinstance(text, str)), None)
    if invalid is not None or value is None or not texts:
        raise ValueError(f"{where}: {column!r} is {value!r:.60}, expected a string or a list of strings")
    return list(texts)


def _key(value: Any) -> str:
    """Return a key as text, so that 42, 42.0 and "42" are the same key."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
