"""The images of a table's rows: those that the rows name, or, of a job's own output, the inputs of the job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from ..dataset.readers import ReaderOptions, list_inputs
from ..dataset.state.atomic_files import count_lines
from ..dataset.state.listing import Listing
from ..dataset.state.paths import INPUTS, STATE_SUFFIX
from ..dataset.state.records import Item, printable
from ..dataset.state.regular_files import own_exists
from ..dataset.state.signature import is_listing_signed
from .scored_tables import Row, Table

# Yields the rows of a table, each with its image.
WithImages = Callable[[Iterator[Row]], Iterator[tuple[Row, Item]]]


def images_of_rows(table: Table, options: ReaderOptions) -> WithImages:
    """Return what finds the images by a column of the table; errors as in `list_inputs`."""
    items = list_inputs([str(path) for path in table.files], options)

    def paired(rows: Iterator[Row]) -> Iterator[tuple[Row, Item]]:
        for row, item in zip_longest(rows, items):
            if row is None or item is None:
                raise ValueError("the table changed while it was read: run the command again")
            yield row, item

    return paired


def images_of_job(table: Table) -> WithImages | None:
    """Return what finds the images of a job's output by its keys; None if no job of this user here wrote the table.

    The job knows images that a path in a table cannot name: in archives and tables, at URLs, and frames of videos.
    """
    state = _state_of(table)
    if state is None:
        return None
    listing = Listing(state / INPUTS)

    def paired(rows: Iterator[Row]) -> Iterator[tuple[Row, Item]]:
        items = listing.items()
        for row in rows:
            yield row, _next_with_key(items, row.get("key"), table)

    return paired


def _next_with_key(items: Iterable[Item], key: object, table: Table) -> Item:
    for item in items:
        if printable(item.key) == key:
            return item
    raise ValueError(
        f"{table.path}: the job that wrote it has no input {key!r} behind those of the rows before: restore the order "
        "of the rows, or name a column of images with image_column (--image-column)"
    )


def _state_of(table: Table) -> Path | None:
    folder = table.path if table.path.is_dir() else table.path.parent
    for state in (table.path.with_name(table.path.name + STATE_SUFFIX), folder / STATE_SUFFIX):
        if own_exists(state / INPUTS):
            digest = hashlib.sha256()
            count_lines(state / INPUTS, digest)
            if is_listing_signed(state.absolute(), digest.digest()):
                return state
    return None
