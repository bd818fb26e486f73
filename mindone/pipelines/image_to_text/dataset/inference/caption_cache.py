"""The answers of a job, in a journal of their own: nothing that was answered is asked again.

A record of `journal.jsonl` needs all captions of an input, and all inputs before it. An answer is stored as soon as it
is there: the caption of an equal image, an earlier text of an image whose other texts are not done, an attempt that
broke a rule. A line is with the operating system before the next request, so it survives SIGKILL, and is flushed to
disk at least once a second while there are answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..rules.retries import TEXT_MARK, Attempt, Caption, CaptionKey, breaks_rules, next_attempt
from ..state.atomic_files import atomic_write, lines_from, sync_directory
from ..state.bounded_reading import parse_json
from ..state.paths import ALL_ANSWERS, ANSWERS, OLDER_ANSWERS
from ..state.records import dumps
from ..state.regular_files import open_own, own_exists, remove_own
from ..state.tasks import Task
from ..state.temp_table import TempTable, TempTableError

if TYPE_CHECKING:
    from ..options import CaptioningSettings

_log = logging.getLogger(__name__)
SYNC_SECONDS = 1.0  # between two flushes to disk, while answers arrive
_OWN = -1  # number of this process's file in the index
_CAPTION = 0  # number of an accepted caption; attempts that broke a rule have numbers from 1


class CaptionCache:
    """Answers by key, in a file of JSON lines; memory does not grow with their number.

    A line has `image` (SHA-256), `prompt` (with what else determines the caption, see `caption_key`), `settings` (a
    digest of those of its text) and `answer`: text, tokens, finish reason and, of an accepted caption, notes and
    source; an `attempt` that broke a rule has its number, the rules in `broken`, and its own source. Answers under
    other settings are not found, so a job may be resumed with other rules for one of its texts.

    The answers in the files of the job's other processes are found too, as far as they were there when this was opened:
    a job that resumes may give an input to another process than before.

    Damage at the end of the file is what a crash leaves; the file is cut there. Damaged lines before answers that can
    be read are skipped. What is lost is asked again.

    Args:
        path: the file; None uses a temporary one, which is emptied if its disk is full.
        settings: of the job, or None if they never change.

    Raises:
        OSError: the file cannot be created, for example because the disk is full; `put` and `put_attempt` raise it too.
        ValueError: a line is longer than any answer, which no crash leaves.
    """

    def __init__(self, path: Path | None, settings: CaptioningSettings | None = None) -> None:
        self._path = path
        self._digests = {} if settings is None else _digests(settings)
        self._index = _new_index()
        self._size, self._synced = 0, time.monotonic()
        self._others: list[Path] = []  # files of the job's other processes
        self._file: Any = None
        try:
            is_new = path is not None and not own_exists(path)
            self._file = _temporary() if path is None else open_own(path, "ab+")
            if path is not None:
                self._read(path)
                if is_new:
                    sync_directory(path.parent)
        except OSError as error:
            self.close()
            raise self._full(error) from error
        except ValueError as error:
            self.close()
            raise ValueError(f"{error}: delete it, and its answers are asked again") from error

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
            attempt.caption = Caption(text, tokens, finish_reason, source=values.get("source", {}))
            attempt.violations = tuple(values["broken"])
            found.append(attempt)
        return found

    def put_attempt(self, key: CaptionKey, number: int, attempt: Attempt) -> None:
        """Store an attempt that broke a rule, so that a resumed job does not make it again."""
        caption = attempt.caption
        if caption is None:
            return
        answer = [caption.text, caption.tokens, caption.finish_reason]
        source = {"source": caption.source} if caption.source else {}
        self._append(key, number, {"attempt": number, "answer": answer, "broken": attempt.violations, **source})

    def close(self) -> None:
        """Flush the file to disk, and close it."""
        if self._file is not None:
            with suppress(OSError):  # the disk is full, or gone
                self._sync()
            self._file.close()
        self._index.close()

    def _find(self, key: CaptionKey, attempt: int) -> dict[str, Any] | None:
        row = self._index.get(self._name(key, attempt))
        if row is None:
            return None
        number, offset, length = row
        values: dict[str, Any]
        if number == _OWN:
            values = parse_json(os.pread(self._file.fileno(), length, offset))
            return values
        try:
            with open_own(self._others[number]) as file:
                file.seek(offset)
                values = parse_json(file.read(length))
        except OSError:  # since the start: it only saved work
            return None
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
        self._index.put(self._name(key, number), _OWN, self._size, len(data))
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
        self._index = _new_index()

    def _read(self, path: Path) -> None:
        """Read which answers there are, those of this process last, and cut off what a crash left at the end."""
        for other in sorted(path.parent.glob(ALL_ANSWERS)):
            if other != path:
                self._others.append(other)
                try:
                    self._read_file(other, len(self._others) - 1)
                except TempTableError:  # of this process's own index
                    raise
                except OSError as error:
                    why = error.strerror or error
                    _log.warning("%s cannot be read (%s), so its answers are asked again", other, why)
        self._size = self._read_file(path, _OWN)
        if os.fstat(self._file.fileno()).st_size > self._size:
            os.ftruncate(self._file.fileno(), self._size)

    def _read_file(self, path: Path, number: int) -> int:
        """Add the answers of a file to the index, and return where the last one ends."""
        offset = end = damaged = skipped = 0
        for line in lines_from(path):
            name = _name_of(line)
            if name is None:
                damaged += 1
            else:
                self._index.put(name, number, offset, len(line))
                end, skipped = offset + len(line), damaged
            offset += len(line)
        if skipped:
            _log.warning("%s: %d damaged lines, whose answers are asked again", path, skipped)
        return end

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


def cache_name(rank: int | str = 0) -> str:
    """Return the file name of the answers of one of a job's processes, by its number or another name."""
    stem, _, suffix = ANSWERS.partition(".")
    return f"{stem}-{rank}.{suffix}" if rank else ANSWERS


def delete_caption_caches(directory: Path, patterns: Sequence[str] = (ALL_ANSWERS, OLDER_ANSWERS)) -> None:
    """Delete the answers of all processes of a job, and what earlier versions stored in their place."""
    for pattern in patterns:
        for path in directory.glob(pattern):
            remove_own(path)


def merge_caption_caches(directory: Path) -> None:
    """Put the answers of all processes of a job into the first one's file, each once; none of them may be running.

    Raises:
        OSError: a file cannot be written; the answers are where they were before.
    """
    own = directory / ANSWERS
    others = [path for path in sorted(directory.glob(ALL_ANSWERS)) if path != own and _is_readable(path)]
    if not others:
        return
    with closing(TempTable()) as names, atomic_write(own) as file:
        for path in (own, *others) if own_exists(own) else others:
            for line in lines_from(path):
                name = _name_of(line)
                if name is not None and names.add(name):
                    file.write(line)
    for path in others:
        remove_own(path)


def _is_readable(path: Path) -> bool:
    """Return whether a file can be opened; `CaptionCache` reports those that cannot."""
    try:
        open_own(path).close()
    except OSError:
        return False
    return True


def remove_failed_answers(directory: Path, breaks_a_rule: bool) -> None:
    """Remove the empty answers of a job, whose inputs have failed, so that a server is asked again for them.

    A model in this process would give the same answers again.

    Args:
        directory: state directory of the job.
        breaks_a_rule: whether inputs with captions that break a rule have failed too.

    Raises:
        OSError: a file cannot be written; it is as it was before.
    """

    def is_kept(line: bytes) -> bool:
        try:
            values = parse_json(line)
            text, _, _, notes, *_ = values["answer"]
            return "attempt" in values or (bool(text.strip()) and not (breaks_a_rule and breaks_rules(notes)))
        except (ValueError, KeyError, TypeError, AttributeError):  # an attempt, which has no notes; or damaged
            return True

    for path in directory.glob(ALL_ANSWERS):
        with atomic_write(path) as file:
            file.writelines(filter(is_kept, lines_from(path)))


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


def _name_of(line: bytes) -> bytes | None:
    """Return the key of the answer in a line; None if it is none, or incomplete."""
    try:
        values = parse_json(line)
        key = bytes.fromhex(values["image"]), values["prompt"]
        text, tokens, reason, *more = values["answer"]
        is_answer = isinstance(text, str) and type(tokens) is int and isinstance(reason, str)
        if "attempt" in values:
            is_source = isinstance(values.get("source", {}), dict)
            is_answer = is_answer and not more and isinstance(values["broken"], list) and is_source
        else:
            is_answer = is_answer and isinstance(more[0], list) and all(isinstance(one, dict) for one in more[1:])
        if not is_answer or len(more) > 2 or not line.endswith(b"\n"):
            return None
        return _entry(key, values["settings"], values.get("attempt", _CAPTION))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _new_index() -> TempTable:
    """Return a table of where answers are: which of the files, its bytes from where on, and how many."""
    return TempTable("file INTEGER", "offset INTEGER", "length INTEGER")


def _temporary() -> Any:
    return tempfile.TemporaryFile(buffering=0)
