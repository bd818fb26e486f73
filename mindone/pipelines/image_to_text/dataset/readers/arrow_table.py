"""Arrow files, and the directories of them that `datasets` saves; mapped into memory, not loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import Found, InputError, Place, ReaderOptions, failure
from .columns import arrow_modules, choose

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 1024


def open_arrow(path: str) -> pa.Table:
    """Map an Arrow file of either form, stream or file; nothing is copied.

    Raises:
        pyarrow.ArrowException, OSError: it is neither, or damaged.
        ImportError: pyarrow is not installed.
    """
    pa = arrow_modules()
    with open(path, "rb") as file:
        is_file_form = file.read(6) == b"ARROW1"
    mapped = pa.memory_map(path)
    return (pa.ipc.open_file if is_file_form else pa.ipc.open_stream)(mapped).read_all()


def arrow_table(place: Place, options: ReaderOptions, first: int = 0) -> Iterator[Found]:
    """Yield the rows of an Arrow file, numbered from `first` on; one that is damaged fails by itself.

    Raises:
        InputError: no column holds pictures.
        ImportError: pyarrow is not installed.
    """
    pa = arrow_modules()
    number = first
    try:
        data = open_arrow(place.path)
        table, names = choose(data.schema, place, options)
        listed = table.row if table.image in names else table.stored
        for row in _rows(data, names):
            inline = {"kind": "arrow", "path": place.path, "row": number - first, "column": table.image}
            yield listed(number, row, inline)
            number += 1
    except (pa.ArrowException, OSError) as error:
        name = f"{place.prefix}{place.stem or os.path.basename(place.path)}"
        yield failure(name, place.name, f"the table is damaged, from row {number} on: {error}")


def huggingface_directory(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield the rows of what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    pyarrow maps the files, as `datasets` itself does, so that `datasets` and all that it brings is not needed.

    Raises:
        InputError: the directory is not whole, or no column holds pictures.
        ImportError: pyarrow is not installed.
    """
    parts = [""]
    if os.path.exists(os.path.join(place.path, "dataset_dict.json")):
        parts = _read_json(place, "dataset_dict.json", "splits")
    for part in parts:
        inner = replace(place, path=os.path.join(place.path, part), name=os.path.join(place.name, part).rstrip(os.sep))
        stem = os.path.join(os.path.basename(place.path), part).rstrip(os.sep)
        number = 0
        for file in _read_json(inner, "state.json", "_data_files"):
            data = replace(inner, path=os.path.join(inner.path, file["filename"]), stem=stem)
            for found in arrow_table(data, options, number):
                yield found
                number += 1


def _rows(data: pa.Table, names: list[str]) -> Iterator[dict[str, Any]]:
    if not names:
        yield from ({} for _ in range(data.num_rows))
        return
    for batch in data.select(names).to_batches(_ROWS):
        yield from batch.to_pylist()


def _read_json(place: Place, name: str, entry: str) -> list[Any]:
    """Return a list in one of the files that `datasets` keeps beside its tables."""
    path = Path(place.path, name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("_indices_data_files"):
            raise InputError(
                f"{place.name}: an old form with a table of indices; load and save it with a newer `datasets`"
            )
        found: list[Any] = values[entry]
        return found
    except (OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error!r}); the data set is not whole, save it again") from error
