"""Columns of Parquet and Arrow tables: which are read for a listing, and which contain images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import InputError, Location, ReaderOptions
from .item_builder import ItemBuilder
from .rows import Table

if TYPE_CHECKING:
    import pyarrow as pa

LISTED_ROWS = 1024  # rows read at a time for a listing


def import_pyarrow() -> Any:
    """Import pyarrow.

    Raises:
        ImportError: it is not installed; the message tells how to install it.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "Parquet and Arrow files need pyarrow, which is not installed: pip install 'mindone-share4v[dataset]'"
        ) from error
    return pyarrow


def choose_columns(
    schema: pa.Schema, location: Location, options: ReaderOptions, builder: ItemBuilder
) -> tuple[Table, list[str]]:
    """Return the table, and the columns to read for its listing: all without bytes, which are read with each item.

    Raises:
        InputError: no column contains images.
    """
    pa = import_pyarrow()
    stored = [field.name for field in schema if _is_stored_image(pa, field.type)]
    table = Table.with_columns(location, options, builder, schema.names, stored)
    field = schema.field(table.image)
    if table.image not in stored and not _is_text(pa, field.type):
        raise InputError(
            f"{location.name}: the column {table.image!r} has the type {field.type}; expected bytes, strings (a path, "
            "URL or data URI) or the struct of bytes and path that `datasets` writes"
        )
    return table, [one.name for one in schema if one.name not in stored and not _has_bytes(pa, one.type)]


def _is_stored_image(pa: Any, kind: pa.DataType) -> bool:
    """Return whether a column contains bytes, or structs of bytes and a path."""
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
    return any(_has_bytes(pa, kind.field(index).type) for index in range(kind.num_fields))
