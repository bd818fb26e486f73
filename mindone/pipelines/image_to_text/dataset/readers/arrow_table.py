"""Arrow files, and the directories of them that `datasets` writes; memory-mapped, not loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..state.records import Item
from ..state.regular_files import open_input
from .arrow_columns import LISTED_ROWS, check_array, choose_columns, import_pyarrow, python_rows
from .base import InputError, Location, ReaderOptions
from .item_builder import ItemBuilder


class ArrowFile:
    """An Arrow file, in the stream or the file format, mapped into memory.

    If somebody shortens a mapped file, reading it ends the process (SIGBUS), so `check` is called before each use.

    Attributes:
        table: its rows.

    Raises:
        pyarrow.ArrowException, OSError: it has neither format, or is damaged.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, path: str) -> None:
        pa = import_pyarrow()
        self._file = open_input(path)  # stays open: the file may be deleted or replaced, which does no harm
        self._version = self._current_version()
        is_file_format = self._file.read(6) == b"ARROW1"
        mapped = pa.memory_map(path)
        self.table: Any = (pa.ipc.open_file if is_file_format else pa.ipc.open_stream)(mapped).read_all()
        self.check()

    def check(self) -> None:
        """Check that the file is the one that was opened.

        Raises:
            OSError: it was written to or shortened.
        """
        if self._current_version() != self._version:
            raise OSError("the file was changed while it was read; run the job again when it is complete")

    def _current_version(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def arrow_table(
    location: Location, options: ReaderOptions, builder: ItemBuilder, first_number: int = 0
) -> Iterator[Item]:
    """Yield the rows of an Arrow file, numbered from `first_number`; a damaged file ends with an Item that fails.

    Raises:
        InputError: no column contains images.
        ImportError: pyarrow is not installed.
    """
    pa = import_pyarrow()
    number = first_number
    try:
        data = ArrowFile(location.path)
        table, names = choose_columns(data.table.schema, location, options, builder)
        make_item = table.item if table.image in names else table.stored_item
        for row in _rows(data, names):
            locator = {"kind": "arrow", "path": location.path, "row": number - first_number, "column": table.image}
            if isinstance(row, str):
                yield table.unreadable_item(number, row)
            else:
                yield make_item(number, row, locator)
            number += 1
    except (pa.ArrowException, OSError) as error:
        key = f"{location.prefix}{location.stem or os.path.basename(location.path)}"
        yield builder.build_failure(key, location.name, f"the table is damaged from row {number} on: {error}")


def huggingface_directory(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the rows that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    The files are read with pyarrow, as `datasets` does, so `datasets` and its dependencies are not needed.

    Raises:
        InputError: the directory is incomplete, or no column contains images.
        ImportError: pyarrow is not installed.
    """
    splits = [""]
    if os.path.exists(os.path.join(location.path, "dataset_dict.json")):
        splits = _read_json_list(location, "dataset_dict.json", "splits")
    for split in splits:
        path = os.path.join(location.path, split)
        name = os.path.join(location.name, split).rstrip(os.sep)
        stem = os.path.join(os.path.basename(location.path), split).rstrip(os.sep)
        split_location = replace(location, path=path, name=name, stem=stem)
        number = 0
        for file in _read_json_list(split_location, "state.json", "_data_files"):
            file_location = replace(split_location, path=os.path.join(path, file["filename"]))
            for item in arrow_table(file_location, options, builder, number):
                yield item
                number += 1


class ArrowColumn:
    """One column of an Arrow file, whose batches are checked before the first value of each is read.

    Args:
        path: path of the file.
        column: name of the column.

    Raises:
        pyarrow.ArrowException, OSError, KeyError: the file is damaged, or has no such column.
    """

    def __init__(self, path: str, column: str) -> None:
        self._file = ArrowFile(path)
        self._chunks = self._file.table.column(column).chunks
        self._checked: set[int] = set()

    def row(self, number: int) -> Any:
        """Return the value of a row; any thread may call it.

        Raises:
            IndexError: there are fewer rows.
            pyarrow.ArrowException, OSError: its batch is damaged, or the file was changed.
        """
        self._file.check()
        for index, chunk in enumerate(self._chunks):
            if number < len(chunk):
                if index not in self._checked:
                    check_array(chunk)
                    self._checked.add(index)
                return chunk[number].as_py()
            number -= len(chunk)
        raise IndexError(number)


def _rows(data: ArrowFile, names: list[str]) -> Iterator[dict[str, Any] | str]:
    if not names:
        yield from ({} for _ in range(data.table.num_rows))
        return
    for batch in data.table.select(names).to_batches():
        data.check()
        for array in batch.columns:
            check_array(array)  # before it is sliced, which reads offsets
        for start in range(0, batch.num_rows, LISTED_ROWS):
            data.check()
            yield from python_rows(batch.slice(start, LISTED_ROWS))


def _read_json_list(location: Location, file_name: str, entry: str) -> list[Any]:
    """Return a list from one of the JSON files that `datasets` writes beside its tables."""
    path = Path(location.path, file_name)
    try:
        with open_input(path) as opened:
            values = json.loads(opened.read())
        if values.get("_indices_data_files"):
            raise InputError(
                f"{location.name}: an old format with a table of indices; load and save it with a newer `datasets`"
            )
        found: list[Any] = values[entry]
        return found
    except (OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error!r}): the data set is incomplete, save it again") from error
