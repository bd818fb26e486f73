"""Reading files of a state directory in bounded memory, whatever somebody has written into them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .regular_files import open_own

MAX_LINE_BYTES = 256 * 2**20  # of a record or an item; the largest holds the columns of one row of a table
_MAX_JSON_BYTES = 64 * 2**20  # of a file with one JSON value


def bounded_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield the lines of a file from its current position, including line ends; the last one may be incomplete.

    Raises:
        ValueError: a line has more than `MAX_LINE_BYTES`.
    """
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(
                f"{path}: the line that begins at byte {file.tell() - len(line):,} has more than {MAX_LINE_BYTES:,} "
                f"bytes; the file is damaged there"
            )
        yield line


def read_json(path: Path) -> Any:
    """Read a file that holds one JSON value.

    Raises:
        OSError: as `open_own`.
        ValueError: it is not JSON, or too large or too deeply nested for a file of a state directory.
    """
    with open_own(path) as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(f"{path}: it has more than {_MAX_JSON_BYTES:,} bytes")
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; what is nested too deeply for Python's parser is a ValueError like all other errors."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
