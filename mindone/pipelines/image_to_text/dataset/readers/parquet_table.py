"""Parquet tables: listed without their images, which are then read from one column of one row group at a time."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..state.records import Item
from ..state.regular_files import check_input
from .arrow_columns import LISTED_ROWS, check_array, choose_columns, has_text_dictionary, import_pyarrow, python_rows
from .base import Location, ReaderOptions
from .item_builder import ItemBuilder

if TYPE_CHECKING:
    import pyarrow.parquet as parquet

BATCH_ROWS = 8  # images decoded at a time
# Values of a column that stay in memory for threads that ask late.
WINDOW_BYTES = 64 * 2**20
WINDOW_ROWS = 1024
# The name under which pyarrow stores the Arrow schema in a file's metadata, as Thrift writes it: a field and a length.
_SCHEMA_KEY = b"\x18\x0cARROW:schema"


def parquet_table(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the rows of a Parquet file; a damaged file ends with an Item that fails.

    Raises:
        InputError: no column contains images.
        ImportError: pyarrow is not installed.
    """
    pa = import_pyarrow()
    number = 0
    try:
        with _open_parquet(location.path) as file:
            table, names = choose_columns(file.schema_arrow, location, options, builder)
            make_item = table.item if table.image in names else table.stored_item
            for group in range(file.num_row_groups):
                for row_in_group, row in enumerate(_rows(file, location.path, group, names)):
                    if isinstance(row, str):
                        yield table.unreadable_item(number, row)
                        number += 1
                        continue
                    locator = {"kind": "parquet", "path": location.path, "group": group, "row": row_in_group}
                    yield make_item(number, row, {**locator, "column": table.image})
                    number += 1
    except (pa.ArrowException, OSError) as error:
        key = f"{location.prefix}{os.path.basename(location.path)}"
        yield builder.build_failure(key, location.name, f"the table is damaged from row {number} on: {error}")


class ParquetColumn:
    """One column of one row group, for threads that ask for rows roughly in ascending order.

    Rows in ascending order cost one pass over the column. A window of the last values serves requests that come a
    little late; a request for an older row restarts the pass.

    Args:
        path: path of the file.
        group: index of the row group.
        column: name of the column.
    """

    def __init__(self, path: str, group: int, column: str) -> None:
        self._path, self._group, self._column = path, group, column
        self._lock = Lock()
        self._restart()

    def row(self, number: int) -> Any:
        """Return the value of a row; thread-safe.

        Raises:
            IndexError: there are fewer rows.
            pyarrow.ArrowException, OSError: the file is damaged.
            Exception: of the conversion to Python, if only this value is at fault.
        """
        with self._lock:
            if number < self._next and number not in self._window:
                self._restart()
            while self._next <= number:
                try:
                    value = _python_value(next(self._values))
                except StopIteration:
                    raise IndexError(number) from None
                self._window[self._next] = value
                self._bytes += _size(value)
                self._next += 1
                while len(self._window) > 1 and (self._bytes > WINDOW_BYTES or len(self._window) > WINDOW_ROWS):
                    self._bytes -= _size(self._window.popitem(last=False)[1])
            value = self._window[number]
        if isinstance(value, Exception):
            raise value
        return value

    def _restart(self) -> None:
        self._values = self._read()
        self._window: OrderedDict[int, Any] = OrderedDict()
        self._bytes = self._next = 0

    def _read(self) -> Iterator[Any]:
        with _open_parquet(self._path) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[self._group], columns=[self._column]):
                check_array(batch.column(0))
                yield from batch.column(0)


def _python_value(scalar: Any) -> Any:
    """Return a value, or the exception that its conversion raises, which must not end the rows behind it."""
    try:
        return scalar.as_py()
    except Exception as error:
        return error


def _open_parquet(path: str) -> parquet.ParquetFile:
    import_pyarrow()
    check_input(path)
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)  # reads pages, not whole column chunks


def _open_without_dictionaries(file: parquet.ParquetFile, path: str) -> parquet.ParquetFile:
    """Open a Parquet file again, without the Arrow schema in it, so that texts are read as such, not as dictionaries.

    Arrow checks a whole dictionary when it reads a column as one, so one text that is not UTF-8 would fail the rest of
    the file, not only its rows.
    """
    import pyarrow.parquet as parquet

    footer = io.BytesIO()
    file.metadata.write_metadata_file(footer)
    columns, key, schema = footer.getvalue().rpartition(_SCHEMA_KEY)  # the last one: a column may have this name
    metadata = parquet.read_metadata(io.BytesIO(columns + key.swapcase() + schema))
    return parquet.ParquetFile(path, metadata=metadata, buffer_size=2**20, pre_buffer=False)


def _rows(file: parquet.ParquetFile, path: str, group: int, names: list[str]) -> Iterator[dict[str, Any] | str]:
    if not names:
        yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
        return
    encoded = {field.name for field in file.schema_arrow if has_text_dictionary(field.type)}
    dictionaries, others = [name for name in names if name in encoded], [name for name in names if name not in encoded]
    if not dictionaries:
        yield from _batch_rows(file, group, names)
        return
    with _open_without_dictionaries(file, path) as plain:
        parts = [_batch_rows(plain, group, dictionaries)] + ([_batch_rows(file, group, others)] if others else [])
        for found in zip(*parts, strict=True):
            faults = [part for part in found if isinstance(part, str)]
            values = {name: value for part in found if isinstance(part, dict) for name, value in part.items()}
            yield faults[0] if faults else {name: values[name] for name in names}


def _batch_rows(file: parquet.ParquetFile, group: int, names: list[str]) -> Iterator[dict[str, Any] | str]:
    for batch in file.iter_batches(LISTED_ROWS, row_groups=[group], columns=names):
        yield from python_rows(batch)


def _size(value: Any) -> int:
    data = value.get("bytes") if isinstance(value, dict) else value
    return len(data) if isinstance(data, (bytes, str)) else 0
