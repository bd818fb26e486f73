"""Parquet tables: listed without the pictures, which are read row group by row group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .base import Found, Place, ReaderOptions, failure
from .columns import arrow_modules, choose

if TYPE_CHECKING:
    import pyarrow.parquet as parquet

_ROWS = 1024


def parquet_table(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield the rows of a Parquet file; one that is damaged fails by itself.

    Raises:
        InputError: no column holds pictures.
        ImportError: pyarrow is not installed.
    """
    pa = arrow_modules()
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(place.path, buffer_size=2**20, pre_buffer=False) as file:
            table, names = choose(file.schema_arrow, place, options)
            listed = table.row if table.image in names else table.stored
            for group in range(file.num_row_groups):
                for row_in_group, row in enumerate(_rows(file, group, names)):
                    inline = {"kind": "parquet", "path": place.path, "group": group, "row": row_in_group}
                    yield listed(number, row, {**inline, "column": table.image})
                    number += 1
    except (pa.ArrowException, OSError) as error:
        name = f"{place.prefix}{os.path.basename(place.path)}"
        yield failure(name, place.name, f"the table is damaged, from row {number} on: {error}")


def _rows(file: parquet.ParquetFile, group: int, names: list[str]) -> Iterator[dict[str, Any]]:
    if not names:
        yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
        return
    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=names):
        yield from batch.to_pylist()
