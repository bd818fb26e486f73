"""Captions wherever they are: sidecar files, tables, and the journals of jobs, read as streams."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindone.models.share4v.suggestions import unknown

from ..readers.arrow_columns import import_pyarrow, python_rows
from ..readers.base import InputError
from ..readers.csv_table import DELIMITERS, MAX_FIELD_CHARACTERS
from ..readers.json_rows import SPACE, Element, elements, lines_of, parse
from ..readers.patterns import matches
from ..readers.text_encoding import open_text
from ..state.paths import JOURNAL, STATE_SUFFIX
from ..state.regular_files import check_input, own_exists

SIDECARS = (".txt", ".caption")
# Columns with captions, in order of preference; those of other programs' files too.
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "generated_text", "cap", "prompt", "description")
_OWN_COLUMNS = ("caption", "captions")
_SOURCE_COLUMNS = ("key", "source", "image", "file_name", "filename", "image_path", "path", "file", "url", "id")
_COCO_PARTS = ("info", "licenses", "images", "categories")  # of a file with captions in "annotations"
_MAX_SIDECAR_BYTES = 2**20
_BATCH_ROWS = 1024
_MAX_UNREAD = 5  # files to name

Row = tuple[str, "Mapping[str, Any] | str"]  # where it is, and its values or why it cannot be read


class SourceError(ValueError):
    """Captions cannot be found where they were said to be; the message says what is there."""


@dataclass(frozen=True)
class CaptionText:
    """A caption.

    Attributes:
        text: the caption; None if there is none.
        source: the file, and in a table the row.
        problem: why there is none.
    """

    text: str | None
    source: str
    problem: str = ""


@dataclass
class CaptionFiles:
    """Files with captions in a folder, or one file.

    Attributes:
        root: the folder; the file itself if it is one.
        names: relative paths, sorted; of one kind.
        unread: files of the other kind, which are not read; the first few.
        unread_count: number of them.
    """

    root: str
    names: Iterator[str]
    unread: list[str] = field(default_factory=list)
    unread_count: int = 0


def caption_texts(
    path: str | Path,
    column: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_unread: Callable[[str], None] = lambda line: None,
) -> Iterator[CaptionText]:
    """Yield the captions of a folder or file.

    A folder is searched with its subfolders, but not hidden ones. If it has `.txt` or `.caption` files, each is one
    caption, as for most trainers; otherwise the tables in it are read: .jsonl, .json, .csv, .tsv and .parquet. A folder
    with neither may have the state directory of a job, of which the journal is read; it can also be given itself.

    Args:
        path: folder or file.
        column: name of the column of captions; by default the first of CAPTION_COLUMNS that a row has.
        include, exclude: patterns of file names in a folder, such as "*.short.txt".
        on_unread: called with a line about tables beside sidecars, which are not read.

    Yields:
        A CaptionText for each caption; a list in a table has several.

    Raises:
        SourceError: (a ValueError) there are no captions, or a file has no column of captions.
        OSError: a file cannot be read.
        ImportError: there is a Parquet file, and pyarrow is not installed.
    """
    files = find_caption_files(os.fspath(path), include, exclude)
    if files.unread_count:
        more = ", ..." if files.unread_count > len(files.unread) else ""
        on_unread(
            f"{files.unread_count:,} tables beside the caption files are not read: {', '.join(files.unread)}{more}; to "
            "read one, give it itself"
        )
    count = 0
    for name in files.names:
        full = os.path.join(files.root, name) if name else files.root
        for text in _captions_in(full, name or full, column):
            yield text
            count += 1
    if not count:
        raise SourceError(f"{path}: its caption files are empty")


def find_caption_files(path: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> CaptionFiles:
    """Find the files that `caption_texts` reads; arguments and errors as there."""
    if not os.path.exists(path):
        raise SourceError(f"{path}: there is no such file or folder")
    if not os.path.isdir(path):
        if _suffix(path) not in (*SIDECARS, *_TABLES):
            known = ", ".join((*SIDECARS, *_TABLES))
            raise SourceError(f"{path}: its kind is unknown; expected a folder, or a file that ends in {known}")
        return CaptionFiles(path, iter(("",)))
    if path.rstrip("/").endswith(STATE_SUFFIX) and own_exists(os.path.join(path, JOURNAL)):
        return CaptionFiles(path, iter((JOURNAL,)))

    def chosen(suffixes: Sequence[str]) -> Iterator[str]:
        for name in _walk(path):
            is_included = not include or any(matches(name, pattern) for pattern in include)
            if _suffix(name) in suffixes and is_included and not any(matches(name, pattern) for pattern in exclude):
                yield name

    tables = list(chosen(tuple(_TABLES)))
    if next(chosen(SIDECARS), None) is not None:
        return CaptionFiles(path, chosen(SIDECARS), tables[:_MAX_UNREAD], len(tables))
    if tables:
        return CaptionFiles(path, iter(tables))
    if own_exists(os.path.join(path, STATE_SUFFIX, JOURNAL)) and not include and not exclude:
        return CaptionFiles(os.path.join(path, STATE_SUFFIX), iter((JOURNAL,)))
    what = "no files that --include and --exclude choose" if include or exclude else "no caption files"
    raise SourceError(f"{path}: it has {what}; expected {', '.join((*SIDECARS, *_TABLES))}")


def _walk(root: str, folder: str = "") -> Iterator[str]:
    """Yield the relative paths of the files in a folder, sorted in each folder; no hidden ones, and no links."""
    with os.scandir(os.path.join(root, folder)) as entries:
        found = sorted(
            (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if not entry.name.startswith(".")
        )
    for name, is_folder in found:
        relative = f"{folder}/{name}" if folder else name
        if is_folder and not name.endswith(STATE_SUFFIX):
            yield from _walk(root, relative)
        elif not is_folder:
            yield relative


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _captions_in(path: str, name: str, column: str | None) -> Iterator[CaptionText]:
    if _suffix(path) in SIDECARS:
        yield _sidecar(path, name)
        return
    has_column = False
    first_columns: list[str] = []
    try:
        for where, row in _TABLES[_suffix(path)](path, name, column):
            if isinstance(row, str):
                yield CaptionText(None, where, row)
                continue
            key = column if column is not None else _caption_column(row)
            has_column |= key is not None and key in row
            first_columns = first_columns or list(row)
            yield from _captions_of(row, key, where)
    except InputError as error:
        raise SourceError(str(error)) from error
    if not has_column and first_columns:
        if column is not None:
            raise SourceError(f"{name}: {unknown('column', column, first_columns)}")
        shown = ", ".join(map(repr, first_columns[:10]))
        raise SourceError(f"{name}: no column of captions among {shown}; name it with column (--caption-column)")


def _captions_of(row: Mapping[str, Any], column: str | None, where: str) -> Iterator[CaptionText]:
    value = None if column is None else row.get(column)
    texts = value if isinstance(value, (list, tuple)) else [value]
    source = next((str(row[name]) for name in _SOURCE_COLUMNS if isinstance(row.get(name), (str, int))), "")
    source = f"{where} ({source})" if source else where
    is_failure = bool(row.get("error")) and texts == [""]  # in a CSV file
    if is_failure or not texts or any(not isinstance(text, str) for text in texts):
        reason = row.get("error") or (f"there is no {column!r}" if column else "there is no caption")
        yield CaptionText(None, source, str(reason))
        return
    for text in texts:
        yield CaptionText(text, source)


def _caption_column(row: Mapping[str, Any]) -> str | None:
    """Return the column of captions of a row.

    A row that has "caption" or "captions" has no caption if those are empty, as that of a failed input, whose "prompt"
    or "texts", the names of captions, are none.
    """
    known = [name for name in CAPTION_COLUMNS if name in row]
    own = [name for name in known if name in _OWN_COLUMNS] or known
    return next((name for name in own if row[name]), own[0] if own else None)


def _sidecar(path: str, name: str) -> CaptionText:
    try:
        with open_text(path, name).file as file:
            data = file.read(_MAX_SIDECAR_BYTES + 1)
    except InputError as error:
        return CaptionText(None, name, str(error).removeprefix(f"{name}: "))
    if len(data) > _MAX_SIDECAR_BYTES:
        return CaptionText(None, name, f"it is larger than {_MAX_SIDECAR_BYTES:,} bytes; is it a caption?")
    return CaptionText(data.decode("utf-8-sig", "replace"), name)


def _json_lines(path: str, name: str, column: str | None) -> Iterator[Row]:
    with open_text(path, name).file as file:
        yield from _objects(lines_of(file), f"{name}, line")


def _json(path: str, name: str, column: str | None) -> Iterator[Row]:
    """Yield the rows of an array, of lines, or of an object: key -> captions or row, or COCO's annotations."""
    with open_text(path, name).file as file:
        head = file.read(1024).lstrip(b"\xef\xbb\xbf").lstrip(SPACE)[:1]
        file.seek(0)
        if head == b"[":
            yield from _objects(elements(file), f"{name}, entry")
            return
        if head != b"{":
            raise SourceError(f"{name}: not JSON of a list or an object")
        if _is_json_lines(file):
            yield from _objects(lines_of(file), f"{name}, line")
            return
        yield from _entries(elements(file, b"{"), name, column)


def _is_json_lines(file: Any) -> bool:
    """Return whether the first line is a complete object and more follows; the file is then at its start."""
    lines = lines_of(file)
    first, second = next(lines, None), next(lines, None)
    file.seek(0)
    return first is not None and second is not None and parse(first)[1] is None


def _entries(found: Iterator[Element], name: str, column: str | None) -> Iterator[Row]:
    known = (column,) if column is not None else CAPTION_COLUMNS
    for number, (offset, data, problem) in enumerate(found, 1):
        entry, reason = parse((offset, b"{" + data + b"}", problem))
        where = f"{name}, entry {number}"
        for key, value in entry.items():
            if key == "annotations" and isinstance(value, list):  # COCO's
                yield from ((f"{where}, {i}", row) for i, row in enumerate(value, 1) if isinstance(row, dict))
            elif key in _COCO_PARTS and not isinstance(value, str):
                continue
            elif isinstance(value, dict):  # kohya's: {"path": {"caption": ..., "tags": ...}}
                yield where, {"key": key, **value}
            elif key in known:  # the object is one row
                yield name, {key: value}
            elif column is None and _is_texts(value):
                yield where, {"key": key, "captions": value}
        if reason is not None:
            yield where, reason


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _objects(found: Iterator[Element], where: str) -> Iterator[Row]:
    for number, element in enumerate(found, 1):
        row, reason = parse(element)
        yield f"{where} {number}", row if reason is None else reason


def _csv(path: str, name: str, column: str | None) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))
    with io.TextIOWrapper(open_text(path, name).file, "utf-8-sig", "replace", newline="") as file:
        reader = csv.DictReader(file, delimiter=DELIMITERS[_suffix(path)[1:]], strict=True)
        try:
            for row in reader:
                yield f"{name}, line {reader.line_num}", {key: value for key, value in row.items() if key is not None}
        except csv.Error as error:
            yield f"{name}, line {reader.line_num}", f"not CSV: {error}; the rest of the file is not read"


def _parquet(path: str, name: str, column: str | None) -> Iterator[Row]:
    pa = import_pyarrow()
    check_input(path)
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            known = [column] if column is not None else [one for one in CAPTION_COLUMNS if one in names]
            wanted = [one for one in (*known, *_SOURCE_COLUMNS, "error") if one in names]
            if not any(one in names for one in known):
                yield name, dict.fromkeys(names)  # the caller says which columns there are
                return
            wanted = [one for one in wanted if one in known or pa.types.is_string(file.schema_arrow.field(one).type)]
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                for row in python_rows(batch):
                    number += 1
                    yield f"{name}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{name}: the table is damaged: {error}") from error


# Suffix -> function of path, name and column that yields the rows.
_TABLES: dict[str, Callable[[str, str, str | None], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
