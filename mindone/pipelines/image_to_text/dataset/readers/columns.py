"""What Parquet and Arrow tables have in common: which columns are read for a listing, and what a cell holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import InputError, Place, ReaderOptions
from .rows import Table

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_modules() -> Any:
    """Import pyarrow.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "Parquet and Arrow files need pyarrow, which is not installed: pip install 'mindone-share4v[dataset]'"
        ) from error
    return pyarrow


def choose(schema: pa.Schema, place: Place, options: ReaderOptions) -> tuple[Table, list[str]]:
    """Return a table and the columns that its listing reads: all but bytes, which reading an item brings.

    Raises:
        InputError: no column holds pictures.
    """
    pa = arrow_modules()
    stored = [field.name for field in schema if _is_stored(pa, field.type)]
    table = Table.of(place, options, schema.names, stored)
    field = schema.field(table.image)
    if table.image not in stored and not _is_text(pa, field.type):
        raise InputError(
            f"{place.name}: the column {table.image!r} is of type {field.type}; pictures are bytes, texts (a path, an "
            "address, a data URI) or the struct of bytes and path that `datasets` writes"
        )
    return table, [one.name for one in schema if one.name not in stored and not _has_bytes(pa, one.type)]


def _is_stored(pa: Any, kind: pa.DataType) -> bool:
    """Whether the column holds bytes, alone or beside a path."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and kind.get_field_index("path") >= 0
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(pa: Any, kind: pa.DataType) -> bool:
    while pa.types.is_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _has_bytes(pa: Any, kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_has_bytes(pa, kind.field(place).type) for place in range(kind.num_fields))
