"""signature.json: how a job recognizes a state directory that this user's job made.

A state directory decides which files are read and where captions are written, and it lies where strangers' files lie
too: in a folder of images that was downloaded, unpacked or copied. Its contents are therefore used only if
signature.json has the HMAC of the directory (path and owner) and of the listing of the inputs, under a random key that
only this user can read. Signed is what leads to files: the listing, with the locators of millions of inputs, by one
digest that is computed while the file is written or counted anyway; and job.json, which names the outputs that a review
publishes. The journal has only texts; the progress of the outputs has names, which the writers check.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from mindone.models.share4v.hub.cache import HOME_VARIABLE, cache_root

from .atomic_files import atomic_write
from .paths import LOCK, QUEUE, SIGNATURE, STATE_FILES
from .records import JobError
from .regular_files import NotRegularFileError, check_directory, open_own, own_exists

KEY_NAME = "state.key"
_KEY_BYTES = 32
_KEPT_LISTINGS = 4  # signatures of listings: of the current one, of the next one, and of those of crashed runs
_MAX_SIGNATURE_BYTES = 2**16


def require_signature(directory: Path) -> None:
    """Check that this user's job made a state directory, or that there is no state in it; nothing is written.

    Raises:
        JobError: somebody else made it, it was moved or copied, an older version made it, or it is a link or has links.
        OSError: it cannot be read.
    """
    names = check_files(directory)
    if has_state(names) and not is_signed(directory):
        raise JobError(not_signed(directory))


def is_signed(directory: Path) -> bool:
    """Return whether this user's job made a state directory, at this path and with this owner."""
    return _is_valid(_stored(directory).get("directory"), directory, "directory", b"")


def is_listing_signed(directory: Path, digest: bytes) -> bool:
    """Return whether this user's job made the listing with this SHA-256."""
    listings = _stored(directory).get("listings")
    return isinstance(listings, list) and any(_is_valid(one, directory, "listing", digest) for one in listings)


def description_digest(description: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 of a job's settings, which `sign_job` signs."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).digest()


def is_job_signed(directory: Path, digest: bytes) -> bool:
    """Return whether this user's job wrote the settings with this SHA-256."""
    return _is_valid(_stored(directory).get("job"), directory, "job", digest)


def sign_directory(directory: Path) -> None:
    """Sign a new state directory.

    Raises:
        JobError: the key cannot be read or created.
        OSError: the signature cannot be written.
    """
    _store(directory, [])


def sign_listing(directory: Path, digest: bytes) -> None:
    """Sign a listing by its SHA-256; the listing that it will replace remains signed.

    Raises:
        JobError, OSError: as in `sign_directory`.
    """
    kept = _stored(directory).get("listings") if is_signed(directory) else None
    kept = [one for one in kept if isinstance(one, str)] if isinstance(kept, list) else []
    listings = [_signature(_own_key(), directory, "listing", digest), *kept[: _KEPT_LISTINGS - 1]]
    _store(directory, listings, _stored(directory).get("job"))


def sign_job(directory: Path, digest: bytes) -> None:
    """Sign a job's settings by their SHA-256, in a signed directory; errors as in `sign_directory`."""
    listings = _stored(directory).get("listings")
    kept = [one for one in listings if isinstance(one, str)] if isinstance(listings, list) else []
    _store(directory, kept, _signature(_own_key(), directory, "job", digest))


def sign_queue(directory: Path, name: str) -> str:
    """Return the signature of a queue, which tells msrun's other ranks that a job of their user leads it."""
    return _signature(_own_key(), directory, "queue", name.encode())


def is_queue_signed(directory: Path, name: str, signature: str) -> bool:
    """Return whether a job of this user leads a queue."""
    return _is_valid(signature, directory, "queue", name.encode())


def check_files(directory: Path) -> list[str]:
    """Return the names in a state directory, after checking that none of a job's is a link or a special file.

    Raises:
        JobError: one is, or the directory is; the message names it.
        OSError: the directory cannot be read.
    """
    try:
        check_directory(directory)
    except NotRegularFileError as error:
        raise JobError(f"{directory}: {error.strerror}; delete it, or use another one (state, --state)") from error
    names = []
    with os.scandir(directory) as entries:
        for entry in entries:
            names.append(entry.name)
            if not _is_of_job(entry.name):
                continue
            status = entry.stat(follow_symlinks=False)
            is_file = S_ISREG(status.st_mode) and status.st_nlink == 1
            if not (S_ISDIR(status.st_mode) if entry.name == QUEUE else is_file):
                raise JobError(
                    f"{entry.path} is a link, has several names (hard links), or is no regular file. No job makes "
                    "such a file in its state directory: delete it, or use another directory (state, --state)"
                )
    return names


def has_state(names: list[str]) -> bool:
    """Return whether the names in a directory include those of a job's state."""
    return any(fnmatch(name, pattern) for name in names for pattern in STATE_FILES)


def _is_of_job(name: str) -> bool:
    return name.startswith((LOCK, SIGNATURE)) or has_state([name])


def not_signed(directory: Path) -> str:
    """Return the message about a directory without a valid signature."""
    return (
        f"{directory} has the state of a job that was not started here by you: its signature is missing or does not "
        f"match the key in {_key_path()}. It was moved, copied, changed, made by an older version, or made by somebody "
        "else; state decides which files are read and written, so it is not used. If it is your job, or one that you "
        "trust, run the same command once with adopt (--adopt): the inputs are listed again and matched with its "
        "records. Otherwise delete it, or use another one (state, --state)"
    )


def _store(directory: Path, listings: list[str], job: object = None) -> None:
    own = _signature(_own_key(), directory, "directory", b"")
    with atomic_write(directory / SIGNATURE) as file:
        stored = {"version": 1, "directory": own, "listings": listings, **({"job": job} if job else {})}
        file.write(json.dumps(stored, indent=1).encode())


def _stored(directory: Path) -> dict[str, object]:
    """Return the contents of signature.json, or nothing if there is none that can be read."""
    with suppress(ValueError, FileNotFoundError, RecursionError), open_own(directory / SIGNATURE) as file:
        values = json.loads(file.read(_MAX_SIGNATURE_BYTES))
        return values if isinstance(values, dict) else {}
    return {}


def _is_valid(signature: object, directory: Path, kind: str, data: bytes) -> bool:
    key = _existing_key()
    if key is None or not isinstance(signature, str):
        return False
    expected = _signature(key, directory, kind, data)
    return hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))


def _signature(key: bytes, directory: Path, kind: str, data: bytes) -> str:
    path = directory.resolve()
    owner = str(path.stat().st_uid)
    message = b"\0".join((b"share4v state 1", kind.encode(), os.fsencode(path), owner.encode(), data))
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _key_path() -> Path:
    return cache_root() / KEY_NAME


def _own_key() -> bytes:
    """Return this user's key; it is created if there is none; errors as in `_existing_key`."""
    path = _key_path()
    if not own_exists(path):
        try:
            _create_key(path)
        except OSError as error:
            raise JobError(_no_key(path, error)) from error
    key = _existing_key()
    if key is None:
        raise JobError(f"{path} was deleted while it was used; run the command again")
    return key


def _existing_key() -> bytes | None:
    """Return this user's key, or None if there is none.

    Raises:
        JobError: it cannot be read, is damaged, or others can read it.
    """
    path = _key_path()
    try:
        with open_own(path) as file:
            status, key = os.fstat(file.fileno()), file.read(_KEY_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JobError(_no_key(path, error)) from error
    if os.name == "posix" and (status.st_mode & 0o077 or (os.geteuid() and status.st_uid != os.geteuid())):
        raise JobError(f"{path} is not yours alone: it must belong to you, with mode 600; delete it to get a new key")
    if len(key) != _KEY_BYTES:
        raise JobError(f"{path} is damaged: expected {_KEY_BYTES} bytes; delete it to get a new key")
    return key


def _no_key(path: Path, error: OSError) -> str:
    return (
        f"the key that signs jobs cannot be read or created ({error.strerror or error}: {path}): set {HOME_VARIABLE} "
        "to a directory of yours that can be written"
    )


def _create_key(path: Path) -> None:
    """Create the key; of several processes that do so at once, the first one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{KEY_NAME}-{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            try:
                os.link(partial, path)  # unlike a rename, fails if another process was first
            except PermissionError:  # a file system without hard links
                partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
