"""The values of a table that is being scored, on disk, so that a killed command loses none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..dataset.state.atomic_files import AppendOnlyFile, count_lines, lines_from
from ..dataset.state.bounded_reading import parse_json
from ..dataset.state.records import dumps
from ..dataset.state.regular_files import own_exists, remove_own

_SUFFIX = ".progress"
Values = Mapping[str, Any]


class MatchProgress:
    """A file beside the output: a line that says what is computed, and then the values of each row, in order.

    A row without values is one that could not be scored; it is tried again.

    Args:
        out: the table to write.
        settings: everything that the values depend on, as JSON values.
        discards: whether values that were computed with other settings are discarded.

    Raises:
        ValueError: there are such values, and they are not to be discarded.
        OSError: another process writes the file, or it cannot be written.

    Attributes:
        known: number of rows whose values are on disk.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], discards: bool = False) -> None:
        self._path = out.with_name(f"{out.name}{_SUFFIX}")
        header = (dumps(settings) + "\n").encode()
        self.known, size = _valid_lines(self._path, header)
        others = 0 if size or discards else _other_lines(self._path)
        if others:
            raise ValueError(
                f"{self._path} has the values of {others:,} rows that were computed with other settings, or from a "
                "table that has changed: repeat that command to continue it, write to another file with out (--out), "
                "or discard them with overwrite (--overwrite)"
            )
        self._file = AppendOnlyFile(self._path)
        self._file.truncate(size)
        if not size:
            self._file.append(header)
            self._file.flush()

    def values(self) -> Iterator[Values | None]:
        """Yield the values of the rows that are on disk."""
        for line in islice(lines_from(self._path, 1), self.known):
            yield parse_json(line)

    def add(self, values: Sequence[Values | None]) -> None:
        """Store the values of the next rows, on disk."""
        for one in values:
            self._file.append((dumps(one) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def remove(self) -> None:
        """Delete the file: the table is complete."""
        self.close()
        remove_own(self._path)


def digest_of_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the contents of files, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def _valid_lines(path: Path, header: bytes) -> tuple[int, int]:
    """Return the number of rows in a file with this header, and the bytes up to the end of the last complete one."""
    if not own_exists(path):
        return 0, 0
    lines = lines_from(path)
    if next(lines, b"") != header:
        return 0, 0
    count, size = 0, len(header)
    for line in lines:
        if not line.endswith(b"\n") or not _is_row(line):
            break
        count, size = count + 1, size + len(line)
    return count, size


def _other_lines(path: Path) -> int:
    """Return the number of lines after the first of a file that has another header."""
    return max(0, count_lines(path) - 1) if own_exists(path) else 0


def _is_row(line: bytes) -> bool:
    try:
        value = parse_json(line)
    except ValueError:
        return False
    return value is None or isinstance(value, dict)
