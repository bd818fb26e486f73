"""TempTable: what a job looks up by key while it works, on the disk, so that any number of keys takes no memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any


class TempTable:
    """A table in a temporary file, which vanishes when it is closed.

    Args:
        values: columns beside the key, as SQLite declares them.

    Raises:
        OSError: the disk is full, say; every method raises it too.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.temp_table import TempTable
        >>> table = TempTable("place INTEGER")
        >>> table.put(b"cats/1", 17)
        >>> table.get(b"cats/1"), table.get(b"cats/2"), table.add(b"cats/1", 18)
        ((17,), None, False)
        >>> table.close()
    """

    def __init__(self, *values: str) -> None:
        self._marks = ", ".join("?" * (1 + len(values)))
        self._database = sqlite3.connect("", isolation_level=None)  # no name: a temporary file
        for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -8192"):
            self._execute(f"PRAGMA {setting}")
        columns = ", ".join(("key BLOB PRIMARY KEY", *values))
        self._execute(f"CREATE TABLE held ({columns}) WITHOUT ROWID")
        self._execute("BEGIN")

    def put(self, key: bytes, *values: Any) -> None:
        """Keep values under a key, in place of what was there."""
        self._execute(f"INSERT OR REPLACE INTO held VALUES ({self._marks})", (key, *values))

    def add(self, key: bytes, *values: Any) -> bool:
        """Keep values under a key; False, and nothing changed, where it is there already."""
        return self._execute(f"INSERT OR IGNORE INTO held VALUES ({self._marks})", (key, *values)).rowcount == 1

    def get(self, key: bytes) -> tuple[Any, ...] | None:
        """Return the values under a key, or None."""
        row = self._execute("SELECT * FROM held WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[1:]

    def close(self) -> None:
        """Give the disk space back."""
        self._database.close()

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise OSError(
                f"the names of the inputs cannot be kept in a temporary file ({error}): free space in the directory of "
                "temporary files, /var/tmp as a rule, or name another one in SQLITE_TMPDIR or TMPDIR"
            ) from error
