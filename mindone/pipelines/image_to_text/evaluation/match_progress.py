"""The values of a table that is being scored, on disk, so that a killed command loses none."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..dataset.state.atomic_files import AppendOnlyFile, count_lines, lines_from
from ..dataset.state.bounded_reading import parse_json
from ..dataset.state.records import dumps
from ..dataset.state.regular_files import own_exists, remove_own, rename_own

_SUFFIX = ".progress"
_FINISHED = ".retry"  # the same file, of a table that is complete but for the rows that could not be scored
_DAMAGED = object()

Values = Mapping[str, Any]


class MatchProgress:
    """A file beside the output: a line that says what is computed, and then the values of each row, in order.

    A row without values is one that could not be scored; it is tried again, and what that gives is a line with the
    number of the row and its values.

    Args:
        out: the table to write.
        settings: everything that the values depend on, as JSON values.
        discards: whether values that were computed with other settings are discarded.
        retries: whether the rows of the complete table that could not be scored are tried again.

    Raises:
        ValueError: there are values of other settings, which are not to be discarded; or no rows to try again.
        OSError: another process writes the file, or it cannot be written.

    Attributes:
        known: number of rows whose values are on disk.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], discards: bool = False, retries: bool = False) -> None:
        self._path, self._finished = out.with_name(f"{out.name}{_SUFFIX}"), out.with_name(f"{out.name}{_FINISHED}")
        header = (dumps(settings) + "\n").encode()
        source = self._path
        if retries and not own_exists(self._path):  # otherwise this continues a retry
            check_retry(out)
            source = self._finished
        self.known, self._retried, size = _valid_lines(source, header)
        others = 0 if size or discards else _other_lines(source)
        if others:
            raise ValueError(
                f"{source} has the values of {others:,} rows that were computed with other settings, or from a "
                "table that has changed: repeat that command to continue it, write to another file with out (--out), "
                "or discard them with overwrite (--overwrite)"
            )
        if source != self._path:
            rename_own(source, self._path)
        self._file = AppendOnlyFile(self._path)
        self._file.truncate(size)
        if not size:
            self._file.append(header)
            self._file.flush()

    def values(self) -> Iterator[Values | None]:
        """Yield the values of the rows that are on disk."""
        rows = (line for line in lines_from(self._path, 1) if not line.startswith(b"["))
        for row, line in enumerate(islice(rows, self.known)):
            yield self._retried.get(row) or parse_json(line)

    def add(self, start: int, values: Sequence[Values | None], retried: Collection[int] = ()) -> None:
        """Store values on disk.

        Args:
            start: number of the first row.
            values: of it and those that follow; rows that are on disk are skipped.
            retried: which of them were tried again.
        """
        for index, one in enumerate(values):
            if start + index >= self.known:
                self._file.append((dumps(one) + "\n").encode())
            elif index in retried and one is not None:
                self._file.append((dumps([start + index, one]) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def finish(self, failed: int) -> None:
        """Delete the file, as the table is complete, or keep it for the rows that could not be scored."""
        self.close()
        if failed:
            rename_own(self._path, self._finished)
        else:
            remove_own(self._path)
            remove_own(self._finished)


def has_failed_rows(out: Path) -> bool:
    """Return whether rows of a table that was written could not be scored, and can be tried again."""
    return own_exists(out.with_name(f"{out.name}{_FINISHED}"))


def check_retry(out: Path) -> None:
    """Check that there are rows to try again, or that a retry was interrupted.

    Raises:
        ValueError: there is nothing.
    """
    if not has_failed_rows(out) and not own_exists(out.with_name(f"{out.name}{_SUFFIX}")):
        raise ValueError(
            f"{out} has no rows to try again, as {out.name}{_FINISHED} does not exist: all rows were scored, or an "
            "older version wrote the table; leave retry_failed (--retry-failed) out"
        )


def digest_of_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the contents of files, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def _valid_lines(path: Path, header: bytes) -> tuple[int, dict[int, Values], int]:
    """Return what a file with this header has.

    Returns:
        The number of rows, the values of those that were tried again, and the bytes up to the end of the last complete
        line.
    """
    retried: dict[int, Values] = {}
    if not own_exists(path):
        return 0, retried, 0
    lines = lines_from(path)
    if next(lines, b"") != header:
        return 0, retried, 0
    count, size = 0, len(header)
    for line in lines:
        value = _row(line) if line.endswith(b"\n") else _DAMAGED
        if value is _DAMAGED:
            break
        if isinstance(value, list):
            retried[value[0]] = value[1]
        else:
            count += 1
        size += len(line)
    return count, retried, size


def _other_lines(path: Path) -> int:
    """Return the number of lines after the first of a file that has another header."""
    return max(0, count_lines(path) - 1) if own_exists(path) else 0


def _row(line: bytes) -> Any:
    """Return the values of a row, None if it has none, a row number with its new values, or _DAMAGED."""
    try:
        value = parse_json(line)
    except ValueError:
        return _DAMAGED
    is_retried = isinstance(value, list) and list(map(type, value)) == [int, dict]
    return value if value is None or isinstance(value, dict) or is_retried else _DAMAGED
