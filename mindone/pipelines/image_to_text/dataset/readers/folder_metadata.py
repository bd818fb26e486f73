"""Metadata of images in a folder, as `datasets` reads it with load_dataset("imagefolder"): captions and other columns.

A file `metadata.jsonl`, `metadata.csv` or `metadata.parquet` has a row for each image, whose `file_name` is relative to
the file. Rows of a deeper directory come before those of the directories above it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from ..state.records import Item
from .base import InputError, Location, ReaderOptions, SkippedTableError
from .column_names import shown, value
from .file_columns import Description
from .formats import kind_of_file, list_location
from .item_builder import ItemBuilder

_NAME_COLUMNS = ("file_name", "image_file_name")
_CAPTION_COLUMNS = ("text", "caption")
_MAX_COLUMNS = 1000  # names that are kept for a message


def read_metadata(
    directory: str, names: Sequence[str], shown_directory: str, options: ReaderOptions, builder: ItemBuilder
) -> str | None:
    """Read the metadata of a directory into `builder.file_columns`; return the name of the file that was used.

    Only one file of a directory is used. Rows that name no file, or one that an earlier row names, are counted as
    skipped.

    Args:
        directory: absolute path.
        names: the names among METADATA_FILES that exist in it.
        shown_directory: the directory as the caller wrote it.
        options, builder: of the listing.

    Raises:
        InputError: options.caption_column is not a column of the metadata.
    """
    for name in sorted(names):
        path, shown_path = os.path.join(directory, name), os.path.join(shown_directory, name)
        location = Location(kind_of_file(name) or "", path, shown_path)
        if is_joined(location, options, builder, lambda one: one if os.path.lexists(one) else None, path):
            return name
    return None


def is_joined(
    location: Location,
    options: ReaderOptions,
    builder: ItemBuilder,
    described: Callable[[str], str | None],
    source: str,
) -> bool:
    """Read one file into `builder.file_columns`, and return whether it has a column of file names.

    Args:
        location: of the file.
        options, builder: of the listing.
        described: returns the path under which an image is described, given its absolute path according to the file;
            None if there is no such image.
        source: the file, of which no other row may describe the same image.

    Raises:
        InputError: options.caption_column is not a column of the metadata.
    """
    place = replace(location, downloads=False)
    for column in _NAME_COLUMNS:
        reading = _reading(options, column)
        try:
            with ItemBuilder(reading) as rows:
                _store(location, options, builder, list_location(place, reading, rows), described, source)
            return True
        except (SkippedTableError, ImportError):
            return False
        except InputError as error:
            if isinstance(error, _NoCaptionColumn):
                raise
    return False


def has_file_names(location: Location, options: ReaderOptions) -> bool:
    """Return whether a table describes files, by its columns and first row; not one that has the images itself."""
    for column in _NAME_COLUMNS:
        reading = _reading(options, column)
        with suppress(SkippedTableError, ImportError, InputError), ItemBuilder(reading) as rows:
            next(list_location(replace(location, downloads=False), reading, rows), None)
            return True
    return False


def _reading(options: ReaderOptions, column: str) -> ReaderOptions:
    # Captions are chosen from the columns, and caption files are looked for when the images are listed.
    reading = replace(options, image_column=column, caption_column=None, key_column=None, image_root=None)
    return replace(reading, caption_suffixes=(), caption_root=None, kind=None)


class _NoCaptionColumn(InputError):
    """The caption column that the caller named is not in the metadata."""


def _store(
    location: Location,
    options: ReaderOptions,
    builder: ItemBuilder,
    rows: Iterator[Item],
    described: Callable[[str], str | None],
    source: str,
) -> None:
    names: dict[str, None] = {}
    for item in rows:
        path = None if item.path is None else described(item.path)
        if path is None:
            builder.skipped.note("metadata_row", f"{location.name}: {item.source}")
            continue
        if options.caption_column is None:
            texts = [item.columns.get(one) for one in _CAPTION_COLUMNS]
        else:
            texts = [value(item.columns, options.caption_column)]
            if len(names) < _MAX_COLUMNS:
                names.update(dict.fromkeys(item.columns))
        caption = next((text for text in texts if isinstance(text, str) and text.strip()), None)
        if not builder.file_columns.add(path, source, Description(item.columns, caption)):
            builder.skipped.note("metadata_row", f"{location.name}: {item.source}")
    wanted = options.caption_column
    if names and wanted is not None and wanted.partition(".")[0] not in names and wanted not in names:
        raise _NoCaptionColumn(f"{location.name} has no column {wanted!r} (caption_column); it has {shown(names)}")
