"""Caption cache: the same picture with the same question is captioned once per job."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from ..rules.retries import Caption, CaptionKey
from ..state.paths import CAPTION_CACHES
from ..state.regular_files import remove_link, remove_own
from ..state.tasks import Task


class CaptionCache:
    """Captions by key, in an SQLite file, so that memory does not grow with the number of pictures.

    The cache only saves time: a caption that is not in it would be generated again with the same result. A damaged file
    is therefore deleted and started again.

    Args:
        path: the file; None uses a temporary file that is deleted with this object.

    Raises:
        OSError: the file cannot be created, for example because the disk is full; `get` and `put` may raise it too.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError:
            self._connection = self._recreate()

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            for ending in ("", "-journal", "-shm", "-wal"):
                remove_link(self._path.with_name(self._path.name + ending))
        # With an empty name SQLite uses a temporary file, deleted with the connection; ":memory:" would fill memory.
        # Ray may call an actor from another thread than the one that created it, but never from two at a time.
        connection = sqlite3.connect(self._path or "", isolation_level=None, check_same_thread=False)
        try:
            # The file survives a killed process. It may not survive a power cut, because nothing waits for the disk.
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

    def _restart(self) -> None:
        self._connection.close()
        self._connection = self._recreate()

    def _recreate(self) -> sqlite3.Connection:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            where = self._path or "a temporary file; SQLITE_TMPDIR or TMPDIR may name another directory for it"
            raise OSError(f"the caption cache cannot be written ({error}): free disk space for {where}") from error

    def get(self, key: CaptionKey) -> Caption | None:
        """Return the cached caption, or None."""
        try:
            row = self._connection.execute(
                "SELECT caption FROM captions WHERE picture = ? AND prompt = ?", _columns(key)
            ).fetchone()
        except sqlite3.DatabaseError:
            self._restart()
            return None
        if row is None:
            return None
        text, tokens, finish_reason, notes, *source = json.loads(row[0])
        return Caption(text, tokens, finish_reason, tuple(notes), *source)

    def put(self, key: CaptionKey, caption: Caption) -> None:
        """Store a caption."""
        source = [caption.source] if caption.source else []
        value = json.dumps([caption.text, caption.tokens, caption.finish_reason, caption.notes, *source])
        try:
            self._connection.execute("INSERT OR REPLACE INTO captions VALUES (?, ?, ?)", (*_columns(key), value))
        except sqlite3.DatabaseError:
            self._restart()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def caption_key(task: Task, sha256: str | None, index: int) -> CaptionKey:
    """Return what determines a caption: the picture, the question, its style, and its number among equal questions.

    A forced beginning belongs to it if it depends on the input; otherwise it is one of the job's settings.

    Args:
        task: the input and its prompts.
        sha256: hexadecimal digest of the picture's bytes.
        index: which of the prompts.
    """
    repeat = task.prompts[:index].count(task.prompts[index])
    question = f"{repeat} {task.styles[index] or ''} {task.prompts[index]}"
    own = "" if task.beginning is None else f"\0{task.beginning}"
    return bytes.fromhex(sha256 or ""), question + own


def cache_name(rank: int = 0) -> str:
    """Return the file name of the cache of one of a job's processes."""
    return f"seen-{rank}.sqlite" if rank else "seen.sqlite"


def delete_caption_caches(directory: Path) -> None:
    """Delete the caches of all processes of a job, with the files that SQLite keeps beside them."""
    for path in directory.glob(CAPTION_CACHES):
        remove_own(path)


def _columns(key: CaptionKey) -> tuple[bytes, bytes]:
    picture, prompt = key
    return picture, prompt.encode("utf-8", "surrogatepass")  # a prompt may contain a file name that is not valid UTF-8
