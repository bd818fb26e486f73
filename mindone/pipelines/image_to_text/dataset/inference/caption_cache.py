"""The answers of a job, in a journal of their own: nothing that was answered is asked again.

A record of `journal.jsonl` needs all captions of an input, and all inputs before it. An answer is stored as soon as it
is there: the caption of an equal image, an earlier text of an image whose other texts are not done, an attempt that
broke a rule. A line is with the operating system before the next request, so it survives SIGKILL, and is flushed to
disk at least once a second while there are answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..rules.retries import TEXT_MARK, Attempt, Caption, CaptionKey, next_attempt
from ..state.atomic_files import lines_from, sync_directory
from ..state.bounded_reading import parse_json
from ..state.paths import ANSWERS, CAPTION_CACHES
from ..state.records import dumps
from ..state.regular_files import open_own, own_exists, remove_own
from ..state.tasks import Task
from ..state.temp_table import TempTable

if TYPE_CHECKING:
    from ..options import CaptioningSettings

SYNC_SECONDS = 1.0  # between two flushes to disk, while answers arrive
_CAPTION = 0  # number of an accepted caption; attempts that broke a rule have numbers from 1


class CaptionCache:
    """Answers by key, in a file of JSON lines; memory does not grow with their number.

    A line has `image` (SHA-256), `prompt` (with what else determines the caption, see `caption_key`), `settings` (a
    digest of those of its text) and `answer`: text, tokens, finish reason and, of an accepted caption, notes and
    source; an `attempt` that broke a rule has its number, and the rules in `broken`. Answers under other settings are
    not found, so a job may be resumed with other rules for one of its texts.

    Damage at the end of the file is what a crash leaves; the file is cut there, and what is lost is asked again.

    Args:
        path: the file; None uses a temporary one, which is emptied if its disk is full.
        settings: of the job, or None if they never change.

    Raises:
        OSError: the file cannot be created, for example because the disk is full; `put` and `put_attempt` raise it too.
    """

    def __init__(self, path: Path | None, settings: CaptioningSettings | None = None) -> None:
        self._path = path
        self._digests = {} if settings is None else _digests(settings)
        self._index = TempTable("offset INTEGER", "length INTEGER")
        self._size, self._synced = 0, time.monotonic()
        try:
            is_new = path is not None and not own_exists(path)
            self._file: Any = _temporary() if path is None else open_own(path, "ab+")
            if path is not None:
                self._read(path)
                if is_new:
                    sync_directory(path.parent)
        except OSError as error:
            self._index.close()
            raise self._full(error) from error

    def get(self, key: CaptionKey) -> Caption | None:
        """Return the caption, or None."""
        values = self._find(key, _CAPTION)
        if values is None:
            return None
        text, tokens, finish_reason, notes, *source = values["answer"]
        return Caption(text, tokens, finish_reason, tuple(notes), *source)

    def put(self, key: CaptionKey, caption: Caption) -> None:
        """Store a caption."""
        source = [caption.source] if caption.source else []
        answer = [caption.text, caption.tokens, caption.finish_reason, caption.notes, *source]
        self._append(key, _CAPTION, {"answer": answer})

    def attempts(self, key: CaptionKey, seed: int, most: int) -> list[Attempt]:
        """Return the first attempts at a caption that broke a rule, at most a number of them."""
        found: list[Attempt] = []
        while len(found) < most and (values := self._find(key, len(found) + 1)) is not None:
            text, tokens, finish_reason = values["answer"]
            attempt = next_attempt(found, seed, key)
            attempt.caption, attempt.violations = Caption(text, tokens, finish_reason), tuple(values["broken"])
            found.append(attempt)
        return found

    def put_attempt(self, key: CaptionKey, number: int, attempt: Attempt) -> None:
        """Store an attempt that broke a rule, so that a resumed job does not make it again."""
        caption = attempt.caption
        if caption is None:
            return
        answer = [caption.text, caption.tokens, caption.finish_reason]
        self._append(key, number, {"attempt": number, "answer": answer, "broken": attempt.violations})

    def close(self) -> None:
        """Flush the file to disk, and close it."""
        with suppress(OSError):  # the disk is full, or gone
            self._sync()
        self._file.close()
        self._index.close()

    def _find(self, key: CaptionKey, number: int) -> dict[str, Any] | None:
        row = self._index.get(self._name(key, number))
        if row is None:
            return None
        offset, length = row
        values: dict[str, Any] = parse_json(os.pread(self._file.fileno(), length, offset))
        return values

    def _append(self, key: CaptionKey, number: int, values: dict[str, Any]) -> None:
        picture, prompt = key
        line = dumps({"image": picture.hex(), "prompt": prompt, "settings": self._settings(prompt), **values})
        data = f"{line}\n".encode()
        try:
            self._write(data)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
            if self._path is not None:
                raise self._full(error) from error
            self._empty()
            return
        self._index.put(self._name(key, number), self._size, len(data))
        self._size += len(data)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        if self._path is not None and time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        if self._path is not None:
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _empty(self) -> None:
        os.ftruncate(self._file.fileno(), 0)
        self._file.seek(0)
        self._size = 0
        self._index.close()
        self._index = TempTable("offset INTEGER", "length INTEGER")

    def _read(self, path: Path) -> None:
        """Read which answers there are, and cut off what a crash left at the end."""
        with suppress(ValueError):  # a line that is longer than any answer
            for line in lines_from(path):
                try:
                    values = parse_json(line)
                    key = bytes.fromhex(values["image"]), values["prompt"]
                    name = _entry(key, values["settings"], values.get("attempt", _CAPTION))
                except (ValueError, KeyError, TypeError, AttributeError):
                    break
                if not line.endswith(b"\n"):
                    break
                self._index.put(name, self._size, len(line))
                self._size += len(line)
        if os.fstat(self._file.fileno()).st_size > self._size:
            os.ftruncate(self._file.fileno(), self._size)

    def _name(self, key: CaptionKey, number: int) -> bytes:
        return _entry(key, self._settings(key[1]), number)

    def _settings(self, prompt: str) -> str:
        return self._digests.get(prompt.partition(TEXT_MARK)[2], "")

    def _full(self, error: OSError) -> OSError:
        where = self._path or f"a temporary file in {tempfile.gettempdir()}; TMPDIR may name another directory for it"
        return OSError(f"the answers cannot be written ({error.strerror or error}): free disk space for {where}")


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
    """Return the file name of the answers of one of a job's processes."""
    stem, _, suffix = ANSWERS.partition(".")
    return f"{stem}-{rank}.{suffix}" if rank else ANSWERS


def delete_caption_caches(directory: Path) -> None:
    """Delete the answers of all processes of a job, and what earlier versions stored in their place."""
    for pattern in CAPTION_CACHES:
        for path in directory.glob(pattern):
            remove_own(path)


def _digests(settings: CaptioningSettings) -> Mapping[str, str]:
    """Return a digest of what may change in a job that is resumed, by the name of its text."""
    named = {text.name: text.settings for text in settings.texts} or {"": settings}
    return {name: _digest([asdict(one.rules), one.attempts, one.seed]) for name, one in named.items()}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _entry(key: CaptionKey, settings: str, number: int) -> bytes:
    """Return the key of an answer in the index."""
    picture, prompt = key
    text = prompt.encode("utf-8", "surrogatepass")  # a prompt may contain a file name that is not valid UTF-8
    parts = picture, settings.encode(), str(number).encode(), text
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def _temporary() -> Any:
    return tempfile.TemporaryFile(buffering=0)
