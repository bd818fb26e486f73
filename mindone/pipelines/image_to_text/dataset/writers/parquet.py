"""Parquet: one row per input, including failures; in one file, or in parts with a fixed number of rows."""

from __future__ import annotations

import sys
from typing import Any

from ..state.records import Item, portable_dumps, printable
from ..state.regular_files import create_own
from .base import Progress, Target, WriterOptions
from .finishing import OutputRecord
from .part_files import Parts
from .rows import TOKEN_COUNTS, output_row

GROUP_ROWS = 1024  # rows per row group, which is what a reader loads at once


class ParquetWriter:
    """Writes one part after another; a part appears when it is complete, and is rewritten after a crash.

    Nested columns, whose fields differ from job to job (`settings`, `columns`, token counts), are stored as JSON text.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the directory has parts of another job.
    """

    def __init__(self, target: Target) -> None:
        from ..readers.arrow_columns import import_pyarrow

        self._pa = import_pyarrow()
        self._count, self._options = len(target.listing), target.options
        path = target.path()
        self._single = path.name if target.is_file else None
        directory = path.parent if target.is_file else path
        self._rows = sys.maxsize if self._single else target.options.shard_size
        self._parts = Parts(directory, None if self._single else target.row.pattern, target)
        self.left_out: list[str] = []
        self._schema = _schema(self._pa, self._options)
        self._writer: Any = None
        self._file: Any = None  # of the writer
        self._buffer: list[dict[str, Any]] = []
        self.start = self._next = self._count if self._parts.finished else self._rows_on_disk()

    def write(self, item: Item, record: OutputRecord) -> None:
        """Add a record's row."""
        row = output_row(record, self._options)
        row |= {name: portable_dumps(row[name]) for name in ("settings", "columns", *TOKEN_COUNTS) if name in row}
        self._buffer.append(row)
        self._next += 1
        if len(self._buffer) == GROUP_ROWS:
            self._write_group()
        if self._next % self._rows == 0:
            self._end_part()

    def flush(self) -> Progress:
        """Return which parts are complete; the current one is not."""
        return self._parts.progress(self._rows_on_disk())

    def finish(self) -> Progress:
        """Complete the last part."""
        if not self._parts.finished:
            if self._buffer or self._writer is not None or not self._parts.names:
                self._end_part()
            self._parts.finish()
        return self._parts.progress(self._next)

    def _rows_on_disk(self) -> int:
        return 0 if self._single else len(self._parts.names) * self._rows

    def _name(self) -> str:
        return self._single or f"part-{len(self._parts.names):05d}.parquet"

    def _write_group(self) -> None:
        import pyarrow.parquet as parquet

        if self._writer is None:
            self._file = create_own(self._parts.partial(self._name()))
            self._writer = parquet.ParquetWriter(self._file, self._schema, compression="zstd")
        columns = {name: [_encodable(row[name]) for row in self._buffer] for name in self._schema.names}
        self._writer.write_table(self._pa.table(columns, self._schema))
        self._buffer.clear()

    def _end_part(self) -> None:
        self._write_group()
        self._writer.close()
        self._file.close()
        self._writer = None
        self._parts.publish(self._name())


def _encodable(value: Any) -> Any:
    """Replace the surrogates in texts, which Arrow cannot encode as UTF-8."""
    if isinstance(value, list):
        return [_encodable(element) for element in value]
    return printable(value) if isinstance(value, str) else value


def _schema(pa: Any, options: WriterOptions) -> Any:
    text, texts = pa.string(), pa.list_(pa.string())
    types = {
        "key": text,
        "source": text,
        "caption": text,
        "captions": texts,
        "error": text,
        "model": text,
        "dtype": text,
        "prompts": texts,
        "settings": text,
        "sha256": text,
        "tokens": pa.list_(pa.int32()),
        "finish_reasons": texts,
        "notes": texts,
        "width": pa.int32(),
        "height": pa.int32(),
        "columns": text,
    }
    if options.has_budgets:
        types |= dict.fromkeys(TOKEN_COUNTS, text)
    types |= dict.fromkeys(options.texts, text)
    return pa.schema(types | {"seconds": pa.float64()} if options.seconds else types)
