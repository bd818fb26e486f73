"""Columns of Parquet and Arrow tables: which are read for a listing, and which contain images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .base import InputError, Location, ReaderOptions, SkippedTableError
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


def python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a batch as dictionaries; a row with a value that Python cannot represent is the reason.

    Such values are texts that are not UTF-8, dates before year 1 or after 9999, and times in unknown time zones.

    Raises:
        pyarrow.ArrowException: the batch is damaged.
    """
    for array in batch.columns:
        check_array(array)
    try:
        rows = batch.to_pylist()
    except Exception:  # OverflowError, UnicodeDecodeError, ValueError, KeyError, ... of one of the rows
        rows = [_python_row(batch, number) for number in range(batch.num_rows)]
    yield from rows


def _python_row(batch: pa.RecordBatch, number: int) -> dict[str, Any] | str:
    row = {}
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = array[number].as_py()
        except Exception as error:
            return f"the column {name!r} has a value that cannot be read ({type(error).__name__}: {error})"
    return row


def check_array(array: pa.Array) -> None:
    """Check that the offsets, lengths and indices of an array stay inside its buffers.

    Arrow does not check them when it maps a file, so a read through a wrong one would end the process. Values are
    checked as bytes and integers: a text that is not UTF-8, or an impossible time, is a fault of its row, not of the
    batch.

    Raises:
        pyarrow.ArrowException: one does not.
    """
    pa = import_pyarrow()
    array.validate()
    if pa.types.is_dictionary(array.type):
        check_array(array.dictionary)
        array.indices.validate(full=True)
        used = array.indices.drop_null().to_numpy(zero_copy_only=False)
        if len(used) and not 0 <= used.min() <= used.max() < len(array.dictionary):
            raise pa.ArrowInvalid("an index leads out of the dictionary")
        return
    if _contains_dictionary(pa, array.type):
        _check_parts(pa, array)
        return
    plain = _plain_type(pa, array.type)
    if plain != array.type:
        with suppress(pa.ArrowNotImplementedError):
            array = array.view(plain)
    array.validate(full=True)


def _contains_dictionary(pa: Any, kind: pa.DataType) -> bool:
    """Return whether a list or struct contains a dictionary at any depth."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind):
        children = [kind.field(index).type for index in range(kind.num_fields)]
        return any(pa.types.is_dictionary(child) or _contains_dictionary(pa, child) for child in children)
    return False


def _check_parts(pa: Any, array: pa.Array) -> None:
    """Check a list or struct without its values, then its values, as `check_array` does."""
    if pa.types.is_struct(array.type):
        parts = [array.field(index) for index in range(array.type.num_fields)]
    else:
        make_list = pa.large_list if pa.types.is_large_list(array.type) else pa.list_
        parts = [array.values]
        buffers, hollow = array.buffers()[:2], [pa.nulls(len(array.values))]
        pa.Array.from_buffers(make_list(pa.null()), len(array), buffers, offset=array.offset, children=hollow).validate(
            full=True
        )
    for part in parts:
        check_array(part)


def _plain_type(pa: Any, kind: pa.DataType) -> pa.DataType:
    """Return a type of the same layout in which every value is valid: bytes for texts, integers for dates and times."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if pa.types.is_decimal(kind):
        return pa.binary(kind.byte_width)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(pa, kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(pa, kind.value_type)))
    if pa.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([field.with_type(_plain_type(pa, field.type)) for field in fields])
    return kind


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
        if not location.downloads:
            raise SkippedTableError("no_images")
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


def has_text_dictionary(kind: pa.DataType) -> bool:
    """Return whether a column has texts in a dictionary, at any depth, and nothing that Parquet has no type for."""
    pa = import_pyarrow()
    if pa.types.is_dictionary(kind):
        return _is_text(pa, kind)
    return _contains_dictionary(pa, kind) and _is_parquet_type(pa, kind)


def _is_parquet_type(pa: Any, kind: pa.DataType) -> bool:
    """Return whether a Parquet file without the Arrow schema gives the same values; durations, say, become numbers."""
    if pa.types.is_nested(kind):
        return all(_is_parquet_type(pa, kind.field(index).type) for index in range(kind.num_fields))
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return is_number or _is_text(pa, kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _has_bytes(pa: Any, kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_has_bytes(pa, kind.field(index).type) for index in range(kind.num_fields))
