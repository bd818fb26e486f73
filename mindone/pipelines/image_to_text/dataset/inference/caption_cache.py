"""Captions made before, by picture and prompt, so that equal pictures are captioned once."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

Key = tuple[bytes, str]


@dataclass(frozen=True)
class Caption:
    """One caption as the model made it.

    Attributes:
        text: with the rules applied.
        tokens: how many the model made for it.
        finish_reason: "eos", "stop", "length" or "context".
        notes: what a reader should know, such as "retried: loop".
    """

    text: str
    tokens: int
    finish_reason: str
    notes: tuple[str, ...] = ()


class SeenCaptions:
    """A table on disk: memory must not grow with the number of pictures.

    It only spares work: what it says would come out the same if it were made again. So a damaged file is begun anew.

    Args:
        path: where it is kept; None keeps it in a temporary file, for this object alone.

    Raises:
        OSError: it cannot be begun anew, as on a full disk; `get` and `put` raise it too.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError:
            self._connection = self._emptied()

    def _open(self) -> sqlite3.Connection:
        # Without a name SQLite makes a temporary file, which vanishes with the connection; ":memory:" would grow.
        # Ray calls an actor from another thread than the one that made it, yet never from two at once.
        connection = sqlite3.connect(self._path or "", isolation_level=None, check_same_thread=False)
        try:
            # A killed process leaves it whole. A power cut may not, as nothing waits for the disk: begun anew then.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS captions (picture BLOB, prompt BLOB, caption TEXT, "
                "PRIMARY KEY (picture, prompt)) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _begin_anew(self) -> None:
        self._connection.close()
        self._connection = self._emptied()

    def _emptied(self) -> sqlite3.Connection:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            place = self._path or "a temporary file; SQLITE_TMPDIR or TMPDIR may name another directory for it"
            raise OSError(f"captions made before cannot be kept ({error}): free space for {place}") from error

    def get(self, key: Key) -> Caption | None:
        """The caption of a picture (its sha256) and prompt, if one was made."""
        try:
            row = self._connection.execute(
                "SELECT caption FROM captions WHERE picture = ? AND prompt = ?", _columns(key)
            ).fetchone()
        except sqlite3.DatabaseError:
            self._begin_anew()
            return None
        if row is None:
            return None
        text, tokens, finish_reason, notes = json.loads(row[0])
        return Caption(text, tokens, finish_reason, tuple(notes))

    def put(self, key: Key, caption: Caption) -> None:
        """Keep a caption."""
        value = json.dumps([caption.text, caption.tokens, caption.finish_reason, caption.notes])
        try:
            self._connection.execute("INSERT OR REPLACE INTO captions VALUES (?, ?, ?)", (*_columns(key), value))
        except sqlite3.DatabaseError:
            self._begin_anew()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def seen_name(rank: int = 0) -> str:
    """Name of the file of one of a job's processes."""
    return f"seen-{rank}.sqlite" if rank else "seen.sqlite"


def forget_seen(directory: Path) -> None:
    """Remove the files of all processes; those that sqlite keeps beside them too."""
    for path in directory.glob("seen*.sqlite*"):
        path.unlink()


def _columns(key: Key) -> tuple[bytes, bytes]:
    picture, prompt = key
    return picture, prompt.encode("utf-8", "surrogatepass")  # a prompt may hold a file's name that is no text
