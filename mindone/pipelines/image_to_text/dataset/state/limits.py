"""--limit: a job on the first inputs only, which a later run without the limit continues with the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from .atomic_files import atomic_write, lines_from
from .journal import read_pairs
from .listing import Listing
from .paths import INPUTS, JOURNAL, LIMIT, PREVIOUS
from .records import Item, record_from_line
from .regular_files import open_own, own_exists, remove_own
from .temp_table import TempTable

ListInputs = Callable[[], Iterable[Item]]  # lists the inputs that exist now


def limited(list_inputs: ListInputs, limit: int | None, directory: Path | None) -> ListInputs:
    """Return a function that lists the first `limit` inputs, and all that have a record already.

    A smaller limit than that of an earlier run therefore drops nothing.

    Args:
        list_inputs: lists all inputs.
        limit: number of inputs; None for all of them.
        directory: state directory of the job, which need not exist; None if its records do not count.
    """
    if limit is None:
        return list_inputs

    def list_first() -> Iterator[Item]:
        with closing(TempTable("error TEXT")) as records:
            has_records = directory is not None and note_records(directory, records) > 0
            count = 0
            for item in list_inputs():
                if item.number >= limit and not has_records:
                    return
                if item.number < limit or records.get(encoded(item.key)) is not None:
                    yield replace(item, number=count)
                    count += 1

    return list_first


def note_records(directory: Path, table: TempTable) -> int:
    """Put the key and the error of every record of a job into a table, and return how many records there are."""
    count = 0
    if own_exists(directory / PREVIOUS):
        for line in lines_from(directory / PREVIOUS):
            record = record_from_line(line)
            table.put(encoded(record.key), record.error)
            count += 1
    if own_exists(directory / INPUTS) and own_exists(directory / JOURNAL):
        for item, record in read_pairs(directory / JOURNAL, Listing(directory / INPUTS)):
            table.put(encoded(item.key), record.error)
            count += 1
    return count


def stored_limit(directory: Path) -> int | None:
    """Return the limit with which the job's current inputs were listed; None if there was none."""
    if not own_exists(directory / LIMIT):
        return None
    with suppress(ValueError, RecursionError), open_own(directory / LIMIT) as file:
        value = json.loads(file.read(32))
        return value if isinstance(value, int) else None
    return None


def store_limit(directory: Path, limit: int | None) -> None:
    """Store the limit with which the job's inputs were listed."""
    if limit is None:
        remove_own(directory / LIMIT)
        return
    with atomic_write(directory / LIMIT) as file:
        file.write(json.dumps(limit).encode())


def encoded(key: str) -> bytes:
    """Return a key as TempTable stores it."""
    return key.encode("utf-8", "surrogatepass")
