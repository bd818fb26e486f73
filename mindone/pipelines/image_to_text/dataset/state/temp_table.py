"""TempTable: a key-value table in a temporary file, so that memory does not grow with the number of inputs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any


class TempTableError(OSError):
    """A TempTable cannot be written, for example because the disk is full."""


class TempTable:
    """A table in a temporary file, which is deleted when the table is closed.

    Args:
        columns: columns beside the key, as SQLite declares them.

    Raises:
        TempTableError: (an OSError) for example because the disk is full; every method raises it too.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.temp_table import TempTable
        >>> table = TempTable("offset INTEGER")
        >>> table.put(b"cats/1", 17)
        >>> table.get(b"cats/1"), table.get(b"cats/2"), table.add(b"cats/1", 18)
        ((17,), None, False)
        >>> table.close()
    """

    def __init__(self, *columns: str) -> None:
        self._placeholders = ", ".join("?" * (1 + len(columns)))
        # An empty name means a temporary file. Ray may call an actor from another thread than the one that created it,
        # but never from two at a time.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -8192"):
            self._execute(f"PRAGMA {setting}")
        self._execute(f"CREATE TABLE entries ({', '.join(('key BLOB PRIMARY KEY', *columns))}) WITHOUT ROWID")
        self._execute("BEGIN")

    def put(self, key: bytes, *values: Any) -> None:
        """Set the values of a key."""
        self._execute(f"INSERT OR REPLACE INTO entries VALUES ({self._placeholders})", (key, *values))

    def add(self, key: bytes, *values: Any) -> bool:
        """Set the values of a new key; return False and change nothing if the key exists."""
        statement = f"INSERT OR IGNORE INTO entries VALUES ({self._placeholders})"
        return self._execute(statement, (key, *values)).rowcount == 1

    def get(self, key: bytes) -> tuple[Any, ...] | None:
        """Return the values of a key, or None."""
        row = self._execute("SELECT * FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[1:]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield all keys with their values, in the order of the keys; the table must not be changed meanwhile."""
        yield from self._execute("SELECT * FROM entries ORDER BY key")

    def close(self) -> None:
        """Delete the temporary file."""
        self._database.close()

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise TempTableError(
                f"the keys of the inputs cannot be stored in a temporary file ({error}): free space in the temporary "
                "directory, usually /var/tmp, or set SQLITE_TMPDIR or TMPDIR to another one"
            ) from error
