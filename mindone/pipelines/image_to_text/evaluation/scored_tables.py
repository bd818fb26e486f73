"""Tables that are written again with further columns: CSV, TSV, JSON, JSON Lines and Parquet, row by row."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mindone.models.share4v.suggestions import unknown

from ..dataset.readers.json_rows import SPACE, Element, elements, lines_of, parse
from ..dataset.readers.text_encoding import not_utf8, open_text
from ..dataset.state.records import dumps
from ..dataset.writers import WRITERS

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_DECIMALS = 4
_HEAD = 2**16
_NO_TABLES = ("sd-scripts-json",)  # formats of one file that is not a list of rows

Row = Mapping[str, Any]
Scored = Iterator[tuple[Row, Mapping[str, Any]]]  # rows with their new columns
ScoreRows = Callable[[Iterator[Row]], Scored]


class Table(NamedTuple):
    """A table to read.

    Attributes:
        files: one file, or the parts of a Parquet table in order.
        path: the file, or the folder of the parts.
        encoding: of a text file; None for UTF-8, or what its first bytes say.
    """

    files: tuple[Path, ...]
    path: Path
    encoding: str | None = None

    @property
    def suffix(self) -> str:
        """Ending of the files, in lower case."""
        return self.files[0].suffix.lower()


class TableFormat(NamedTuple):
    """How a kind of table is read and written.

    Attributes:
        names: returns the names of the columns.
        copy: writes the rows with the columns of these names added, which the function returns for them.
    """

    names: Callable[[Table], list[str]]
    copy: Callable[[Table, BinaryIO, ScoreRows, tuple[str, ...]], None]


def find_table(path: Path, encoding: str | None = None) -> Table:
    """Return the table that a path means: a file, or the only table in a folder that `caption_dataset` wrote.

    Raises:
        ValueError: it is none, or a folder with several.
        FileNotFoundError: there is no such file.
    """
    if path.is_dir():
        return _table_in(path, encoding)
    if path.suffix.lower() not in TABLE_FORMATS:
        raise ValueError(
            f"{path}: expected a table that ends in {', '.join(TABLE_FORMATS)}, or a folder with one; a job writes one "
            "with format (--format)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    return Table((path,), path, encoding)


def _table_in(folder: Path, encoding: str | None) -> Table:
    rows = [row for row in WRITERS.values() if row.name not in _NO_TABLES]
    paths = [folder / row.file_name for row in rows if row.file_name]
    found = [Table((path,), path, encoding) for path in paths if path.is_file()]
    parts = tuple(sorted(path for row in rows if row.suffix and row.pattern for path in folder.glob(row.pattern)))
    found += [Table(parts, folder)] if parts else []
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(table.path) if table.path != folder else f"{parts[0]} ..." for table in found)
        raise ValueError(f"{folder} has several tables: give one of {names}")
    raise ValueError(
        f"{folder} has no table that caption_dataset wrote: give it another format (--format jsonl, csv, parquet, "
        "imagefolder or open-sora-csv)"
    )


def _csv_names(table: Table) -> list[str]:
    with _csv_reader(table) as reader:
        return list(reader.fieldnames or ())


@contextmanager
def _csv_reader(table: Table) -> Iterator[csv.DictReader[str]]:
    """Open a CSV file; of bytes that are no text, say what to do."""
    path = str(table.path)
    try:
        with io.TextIOWrapper(open_text(path, path, table.encoding).file, "utf-8-sig", newline="") as file:
            csv.field_size_limit(2**31 - 1)
            yield csv.DictReader(file, delimiter=_DELIMITERS[table.suffix], strict=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {_not_text(error, table)}") from error


def _not_text(error: UnicodeDecodeError, table: Table) -> str:
    if table.encoding is None:
        return not_utf8(error.object)
    return f"not text in the encoding {table.encoding} (--encoding): give the one that the file has"


def _csv_rows(reader: csv.DictReader[str]) -> Iterator[Row]:
    """Yield the rows that `list_inputs` has too: without those of a spreadsheet that were emptied."""
    for row in reader:
        further = row.pop(None, [])  # type: ignore[call-overload]
        if any(further):
            raise ValueError(f"it has more fields than the {len(reader.fieldnames or ())} columns: quote its commas")
        if any(row.values()):
            yield row


def _copy_csv(table: Table, out: BinaryIO, score: ScoreRows, added: tuple[str, ...]) -> None:
    with _csv_reader(table) as reader:
        names = [*(name for name in reader.fieldnames or () if name not in added), *added]
        text = io.TextIOWrapper(out, "utf-8", newline="", write_through=True)
        writer = csv.DictWriter(text, names, delimiter=_DELIMITERS[table.suffix])
        writer.writeheader()
        try:
            for row, values in score(_csv_rows(reader)):
                writer.writerow({**row, **{name: _csv_cell(value) for name, value in values.items()}})
        except UnicodeDecodeError:
            raise
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{table.path}, line {reader.line_num}: {error}") from error
        finally:
            text.detach()


def _csv_cell(value: Any) -> Any:
    return f"{value:.{_DECIMALS}f}" if isinstance(value, float) else _cell(value)


def _cell(value: Any) -> Any:
    """Return a value as a cell of a CSV or Parquet table: a list as JSON text."""
    return dumps(value) if isinstance(value, list) else value


def _json_rows(table: Table, found: Iterator[Element], what: str) -> Iterator[Row]:
    for number, element in enumerate(found, 1):
        row, reason = parse(element)
        if reason is not None:
            raise ValueError(f"{table.path}, {what} {number}: {reason}")
        yield row


@contextmanager
def _lines(table: Table) -> Iterator[Iterator[Row]]:
    with open_text(str(table.path), str(table.path), table.encoding).file as file:
        yield _json_rows(table, lines_of(file), "line")


@contextmanager
def _array(table: Table) -> Iterator[Iterator[Row]]:
    """Open a JSON file with a list of objects."""

    def opened() -> BinaryIO:
        return open_text(str(table.path), str(table.path), table.encoding).file

    with opened() as file:
        start = file.read(_HEAD).removeprefix(codecs.BOM_UTF8).lstrip(SPACE)[:1]
    if start != b"[":
        raise ValueError(
            f"{table.path}: expected a list of objects, as the formats json and open-sora-plan-json have; of a job "
            "with another one, give the table of another format (--format)"
        )
    with opened() as file:
        yield _json_rows(table, elements(file), "entry")


def _names_of(rows: Callable[[Table], Any]) -> Callable[[Table], list[str]]:
    def names(table: Table) -> list[str]:
        with rows(table) as found:
            return list(next(found, {}))

    return names


def _json_line(row: Row, values: Mapping[str, Any]) -> str:
    rounded = {name: round(value, _DECIMALS) if isinstance(value, float) else value for name, value in values.items()}
    return dumps({**row, **rounded})


def _copy_lines(table: Table, out: BinaryIO, score: ScoreRows, added: tuple[str, ...]) -> None:
    with _lines(table) as rows:
        for row, values in score(rows):
            out.write(f"{_json_line(row, values)}\n".encode())


def _copy_array(table: Table, out: BinaryIO, score: ScoreRows, added: tuple[str, ...]) -> None:
    before = "[\n"
    with _array(table) as rows:
        for row, values in score(rows):
            out.write(f"{before}{_json_line(row, values)}".encode())
            before = ",\n"
    out.write(b"[]\n" if before.startswith("[") else b"\n]\n")


def _parquet_names(table: Table) -> list[str]:
    from ..dataset.readers.arrow_columns import import_pyarrow

    import_pyarrow()
    import pyarrow.parquet as parquet

    return list(parquet.read_schema(table.files[0]).names)


def _copy_parquet(table: Table, out: BinaryIO, score: ScoreRows, added: tuple[str, ...]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with ExitStack() as stack:
        files = [stack.enter_context(parquet.ParquetFile(path)) for path in table.files]
        own = files[0].schema_arrow
        kept = [name for name in own.names if name not in added]
        types = {name: pa.float32() if name == "match" else pa.string() for name in added}
        schema = pa.schema([*(own.field(name) for name in kept), *((name, types[name]) for name in added)])
        writer = stack.enter_context(parquet.ParquetWriter(out, schema))
        # The rows go through one generator, so that batches of scores may span batches of the file.
        batches: list[Any] = []

        def rows() -> Iterator[Row]:
            for file in files:
                for batch in file.iter_batches(1024):
                    batches.append(batch.select(kept))
                    yield from batch.to_pylist()

        waiting: list[Mapping[str, Any]] = []
        for _, values in score(rows()):
            waiting.append(values)
            while batches and len(waiting) >= len(batches[0]):
                batch = batches.pop(0)
                done = waiting[: len(batch)]
                del waiting[: len(batch)]
                columns = [pa.array([_cell(one[name]) for one in done], types[name]) for name in added]
                types_kept = [schema.field(name).type for name in kept]
                arrays = [column.cast(one) for one, column in zip(types_kept, batch.columns, strict=True)]
                writer.write_batch(pa.RecordBatch.from_arrays([*arrays, *columns], schema=schema))


TABLE_FORMATS: dict[str, TableFormat] = {
    ".csv": TableFormat(_csv_names, _copy_csv),
    ".tsv": TableFormat(_csv_names, _copy_csv),
    ".jsonl": TableFormat(_names_of(_lines), _copy_lines),
    ".json": TableFormat(_names_of(_array), _copy_array),
    ".parquet": TableFormat(_parquet_names, _copy_parquet),
}


def chosen_column(table: Table, what: str, given: str | None, known: Sequence[str], names: Sequence[str]) -> str:
    """Return the column that is given, or the first known one.

    Raises:
        ValueError: there is no such column.
    """
    if given is not None:
        if given not in names:
            raise ValueError(f"{table.path}: {unknown('column', given, names)}")
        return given
    found = next((name for name in known if name in names), None)
    if found is None:
        shown = ", ".join(map(repr, names[:20]))
        raise ValueError(
            f"{table.path}: no column of {what}s among {shown}; name it with {what}_column (--{what}-column)"
        )
    return found
