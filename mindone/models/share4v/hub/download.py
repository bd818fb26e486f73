"""Download of one file over HTTP: resumed after an interruption, verified, and visible only when complete."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from ..display import redacted
from .cache import require_space
from .contents import max_bytes, problem_of
from .errors import HubError, NoSpaceError
from .transfer import Pace, Transfer, open_url

ATTEMPTS = 5  # consecutive failures without a new byte
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds
# The deadline of a download begins after START_SECONDS and moves as data arrives (see Pace).
START_SECONDS, MIN_RATE, SECONDS_AHEAD = 120.0, 8192.0, 600.0
MAX_UNSTATED_BYTES = 64 * 2**30  # of weights whose size nothing states
HASH_CHUNK_BYTES = 1024**2
ABSENT_STATUS = frozenset((403, 404, 410))  # 403: what object stores answer if listing is not allowed
TRANSIENT_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))


class DownloadError(HubError):
    """A file could not be downloaded from its address, and a retry would not help."""


class AbsentError(DownloadError):
    """The server does not have the file."""


class _Interrupted(Exception):
    """The transfer was interrupted; what was received is kept, and a retry may complete it."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        url: its address.
        size: expected size in bytes, or None if unknown.
        sha256: expected hash in hexadecimal, or None if unknown.
    """

    url: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The address without passwords, for messages and records."""
        return redacted(self.url)


def download(
    file: RemoteFile,
    target: Path,
    progress: bool | None = None,
    sleep: Callable[[float], None] = time.sleep,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Download a file to `target`, which appears only when it is complete and verified.

    Until then the data is in `<name>.part` next to it. A later call resumes from there, provided that the server still
    has the same file. Broken connections and transient server errors are retried, until ATTEMPTS in a row bring no
    new data.

    Args:
        file: what to download.
        target: where to put it.
        progress: show a progress bar on standard error; None shows it if that is a terminal.
        sleep: waits between attempts, in seconds.
        headers: further headers of the request.

    Raises:
        DownloadError: the server refuses, stops short again and again, or sends another size or hash than stated, or
            contents that the file's name excludes, such as a web page for a config.json.
        TooSlowError: less than MIN_RATE bytes per second arrived on average.
        NoSpaceError: the disk has too little free space.
    """
    part = _Part(target, file)
    pace = Pace(START_SECONDS, MIN_RATE, SECONDS_AHEAD)
    failures, furthest, fresh_start = 0, part.size, part.size == 0
    while True:
        try:
            _transfer(file, part, progress, pace, headers or {})
            reason = _mismatch(file, part)
            if reason is None:
                part.finish()
                return
            part.discard()
            # The mismatch may come from resuming across two versions of the file, so one fresh download is tried.
            if fresh_start:
                raise DownloadError(f"{file.name} {reason}")
            fresh_start, furthest = True, 0
        except _Interrupted as error:
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures >= ATTEMPTS:
                raise DownloadError(f"{file.name} failed {failures} times in a row; last error: {error}") from None
            if pace.remaining < 0:
                raise pace.error(file.url) from None
            sleep(min(max(FIRST_WAIT * 2 ** (failures - 1), error.wait), LONGEST_WAIT))


def traces_of(target: Path) -> tuple[Path, Path, Path]:
    """Return where `download` has the file, and until it is complete what arrived, and a note about that."""
    return target, target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")


class _Part:
    """A partial download on disk, with the validator (ETag or date) of the file on the server."""

    def __init__(self, target: Path, file: RemoteFile) -> None:
        self.file = file
        self.target, self.path, self.note = traces_of(target)

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def validator(self) -> str | None:
        """Return the validator (ETag) of the partial download, or None if it cannot be resumed."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return note["validator"] if note["url"] == self.file.name else None
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return None

    def start(self, validator: str) -> None:
        self.path.write_bytes(b"")
        self.note.write_text(json.dumps({"url": self.file.name, "validator": validator}), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self) -> None:
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)


def _transfer(
    file: RemoteFile, part: _Part, progress: bool | None, pace: Pace, more_headers: Mapping[str, str]
) -> None:
    """Request the missing bytes and append them.

    Raises:
        _Interrupted: the transfer broke off.
    """
    have, validator = part.size, part.validator()
    headers = {**more_headers, "Accept-Encoding": "identity"}  # sizes and ranges refer to the uncompressed file
    if have and validator:
        headers["Range"] = f"bytes={have}-"
        headers["If-Range"] = validator
    else:
        have = 0
    if have and have == file.size:
        return
    try:
        with open_url(file.url, pace, headers) as transfer:
            total = _begin(transfer.response, file, part, have)
            if total is not None and total == part.size:
                return
            _receive(transfer, part, total, progress)
    except requests.RequestException as error:
        raise _Interrupted(f"{type(error).__name__}: {redacted(str(error))}") from None
    except NoSpaceError:
        if file.size is None:  # what it would have become is unknown: do not leave a full disk behind
            part.discard()
        raise


def _begin(response: requests.Response, file: RemoteFile, part: _Part, have: int) -> int | None:
    """Check the response's headers, prepare `part`, and return the size of the complete file, or None if unknown."""
    status = response.status_code
    if status in TRANSIENT_STATUS:
        seconds = response.headers.get("Retry-After", "")
        raise _Interrupted(f"HTTP status {status}", float(seconds) if seconds.isdecimal() else 0.0)
    if status == 416:
        # Nothing exists after the received bytes: the file is complete, or the server has another file now.
        if _range_total(response) == have:
            return have
        part.discard()
        raise _Interrupted("the file on the server is shorter now")
    if status not in (200, 206):
        kind = AbsentError if status in ABSENT_STATUS else DownloadError
        raise kind(f"{file.name} answered with HTTP status {status}")
    if status == 206:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.discard()
            raise _Interrupted("the server sent a different range than requested")
        total = _range_total(response)
    else:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        part.start(_validator(response))
    if file.size is not None and total is not None and total != file.size:
        part.discard()
        raise DownloadError(f"{file.name} has {total} bytes, expected {file.size}")
    total = file.size if file.size is not None else total
    if total is not None:
        _check_size(part, total)
        require_space(part.path.parent, total - part.size)
    return total


def _check_size(part: _Part, size: int, stated: bool = True) -> None:
    """Check a file's size, stated or received so far, against what a file of its name may have."""
    limit = max_bytes(part.target.name) or (None if stated else MAX_UNSTATED_BYTES)
    if limit is not None and size > limit:
        part.discard()
        raise DownloadError(f"{part.file.name} has more than {limit:,} bytes, the limit for {part.target.name}")


def _range_total(response: requests.Response) -> int | None:
    match = re.fullmatch(r"bytes [^/]*/([0-9]+)", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _validator(response: requests.Response) -> str:
    """Return a strong ETag, else the modification date; empty if the server sends neither."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _receive(transfer: Transfer, part: _Part, total: int | None, progress: bool | None) -> None:
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    name = part.target.name
    with (
        part.path.open("ab") as output,
        tqdm(total=total, initial=part.size, unit="B", unit_scale=True, desc=name, disable=hidden) as bar,
    ):
        size = output.tell()
        for chunk in transfer.pieces():
            size += len(chunk)
            if total is not None and size > total:
                break
            if total is None:
                _check_size(part, size, stated=False)
            require_space(part.path.parent, len(chunk))
            output.write(chunk)
            bar.update(len(chunk))
    if total is not None and size > total:
        part.discard()
        raise DownloadError(f"{part.file.name} sends more than the expected {total} bytes")
    if total is not None and size < total:
        raise _Interrupted(f"the connection ended after {size} of {total} bytes")


def _mismatch(file: RemoteFile, part: _Part) -> str | None:
    """Return how a complete file differs from what its source states or its name says; None if it does not."""
    path = part.path
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"gave {size} bytes, expected {file.size}"
    if file.sha256 is not None:
        found = sha256_of(path)
        if found != file.sha256.lower():
            return f"gave a file with sha256 {found}, expected {file.sha256}"
    problem = problem_of(path, part.target.name)
    return None if problem is None else f"gave a file that {problem}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as data:
        while chunk := data.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
