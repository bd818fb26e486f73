"""Single cells of Parquet files, read in passing: a row group's pictures come in order, and the last ones are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Any

from .columns import arrow_modules

BATCH_ROWS = 8
WINDOW_BYTES = 64 * 2**20
WINDOW_ROWS = 1024


class ParquetColumn:
    """One column of one row group; any thread may ask for a row.

    Rows in ascending order cost one reading of the column in all. Those asked for a little too late are still there;
    for one long gone the reading begins again.

    Args:
        path: of the file.
        group: number of the row group.
        column: its name.
    """

    def __init__(self, path: str, group: int, column: str) -> None:
        self._path, self._group, self._column = path, group, column
        self._lock = Lock()
        self._restart()

    def row(self, number: int) -> Any:
        """Return a row's value.

        Raises:
            IndexError: there are fewer rows.
            pyarrow.ArrowException, OSError: the file is damaged.
        """
        with self._lock:
            if number < self._next and number not in self._window:
                self._restart()
            while self._next <= number:
                try:
                    value = next(self._values)
                except StopIteration:
                    raise IndexError(number) from None
                self._window[self._next] = value
                self._bytes += _size(value)
                self._next += 1
                while len(self._window) > 1 and (self._bytes > WINDOW_BYTES or len(self._window) > WINDOW_ROWS):
                    self._bytes -= _size(self._window.popitem(last=False)[1])
            return self._window[number]

    def _restart(self) -> None:
        self._values = self._read()
        self._window: OrderedDict[int, Any] = OrderedDict()
        self._bytes = self._next = 0

    def _read(self) -> Iterator[Any]:
        arrow_modules()
        import pyarrow.parquet as parquet

        # The column comes page by page, not whole.
        with parquet.ParquetFile(self._path, buffer_size=2**20, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[self._group], columns=[self._column]):
                yield from batch.column(0).to_pylist()


def _size(value: Any) -> int:
    data = value.get("bytes") if isinstance(value, dict) else value
    return len(data) if isinstance(data, (bytes, str)) else 0
