"""Caption cache: the same picture with the same question is captioned once per job."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from ..rules.retries import TEXT_MARK, Attempt, Caption, CaptionKey, next_attempt
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
            connection.execute(
                "CREATE TABLE IF NOT EXISTS attempts (picture BLOB, prompt BLOB, number INTEGER, attempt TEXT, "
                "PRIMARY KEY (picture, prompt, number)) WITHOUT ROWID"
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

    def attempts(self, key: CaptionKey, seed: int, most: int) -> list[Attempt]:
        """Return the first attempts at a caption that broke a rule, at most a number of them."""
        try:
            rows = self._connection.execute(
                "SELECT attempt FROM attempts WHERE picture = ? AND prompt = ? ORDER BY number", _columns(key)
            ).fetchall()
        except sqlite3.DatabaseError:
            self._restart()
            return []
        found: list[Attempt] = []
        for (value,) in rows[:most]:
            text, tokens, finish_reason, broken = json.loads(value)
            attempt = next_attempt(found, seed, key)
            attempt.caption, attempt.violations = Caption(text, tokens, finish_reason), tuple(broken)
            found.append(attempt)
        return found

    def put_attempt(self, key: CaptionKey, number: int, attempt: Attempt) -> None:
        """Store an attempt that broke a rule, so that a resumed job does not make it again."""
        caption = attempt.caption
        if caption is None:
            return
        value = json.dumps([caption.text, caption.tokens, caption.finish_reason, attempt.violations])
        try:
            self._connection.execute(
                "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?)", (*_columns(key), number, value)
            )
        except sqlite3.DatabaseError:
            self._restart()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def caption_key(task: Task, sha256: str | None, index: int, prompt: str | None = None) -> CaptionKey:
    """Return what determines a caption: the picture, the question, its style, and its number among equal questions.

    A forced beginning belongs to it if it depends on the input; otherwise it is one of the job's settings. So does the
    name of its text, which has settings of its own; but not to its seed, so that it is the caption of a job of its own.

    Args:
        task: the input and its prompts.
        sha256: hexadecimal digest of the picture's bytes.
        index: which of the prompts.
        prompt: that prompt, variables filled in; by default the task's.
    """
    name, asked = task.text_of(index), task.prompts[index] if prompt is None else prompt
    repeat = 0 if name else task.prompts[:index].count(asked)
    question = f"{repeat} {task.styles[index] or ''} {asked}"
    beginning = task.beginning_of(index)
    own = "" if beginning is None else f"\0{beginning}"
    return bytes.fromhex(sha256 or ""), question + own + (f"{TEXT_MARK}{name}" if name else "")


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
