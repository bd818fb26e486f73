"""Opening files: the only place of the data set that does it, so that links, FIFOs and devices do no harm.

Two kinds of files are opened. An *input* belongs to the user: links to it are followed, but it must be a regular file,
because opening a FIFO blocks and reading a device may never end. An *own* file is one that a job makes, in its state
directory or as its output: a link in its place was made by somebody else and is never followed.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from threading import Lock
from typing import BinaryIO, TextIO, cast

_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO returns at once; regular files ignore it
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_NEW_FILE_MODE, _NEW_DIRECTORY_MODE = 0o666, 0o755  # the process's umask is applied to both


@dataclass(eq=False)
class _Pin:
    """The descriptor of a directory, and how many users it has: it is closed by the last one to leave."""

    descriptor: int
    users: int = 1


# Directories that are pinned, by absolute path. There is more than one if a directory was replaced meanwhile: those who
# pinned the first keep it open, and files are opened in the last.
_PINNED: dict[str, tuple[_Pin, ...]] = {}
_PINS_LOCK = Lock()


class NotRegularFileError(OSError):
    """A path names a FIFO, a device or a socket, or a link where none is allowed; nothing was read."""


def open_input(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a user's file for reading; links are followed, and opening never blocks.

    Raises:
        NotRegularFileError: it is not a regular file.
        OSError: it does not exist or cannot be read.
        ValueError: the path cannot be encoded.
    """
    return _open(os.open(path, os.O_RDONLY | _FLAGS | _NO_WAIT), path, "rb")


def open_input_text(path: str | os.PathLike[str], newline: str | None = None) -> TextIO:
    """Open a user's file of UTF-8 text, with or without a byte order mark; errors as in `open_input`.

    Args:
        path: of the file.
        newline: as in Python's `open`.
    """
    return io.TextIOWrapper(open_input(path), encoding="utf-8-sig", newline=newline)


def check_input(path: str | os.PathLike[str]) -> None:
    """Check a file that a library opens by its path; errors as in `open_input`."""
    open_input(path).close()


def open_own(path: str | os.PathLike[str], mode: str = "rb") -> BinaryIO:
    """Open a file that a job made, without following a link in its place.

    Args:
        path: of the file.
        mode: "rb", "rb+" (it must exist) or "ab+" (it is created if it does not exist; unbuffered).

    Raises:
        NotRegularFileError: it is a link or not a regular file, or it is opened for writing and has further names
            (hard links), under which the data might be somebody else's.
        OSError: it cannot be opened.
    """
    flags = {"rb": os.O_RDONLY, "rb+": os.O_RDWR, "ab+": os.O_RDWR | os.O_APPEND | os.O_CREAT}[mode]
    file = _open(_open_at(path, flags), path, mode)
    if mode != "rb" and os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise NotRegularFileError(
            errno.EMLINK, "the file has several names (hard links); copy it, so that only this one changes", str(path)
        )
    return file


def create_own(path: str | os.PathLike[str]) -> BinaryIO:
    """Create a file for writing; whatever had its name (a link, an older file) loses the name and is not changed.

    Raises:
        OSError: it cannot be created.
    """
    remove_own(path)
    return _open(_open_at(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), path, "wb+")


def remove_own(path: str | os.PathLike[str]) -> None:
    """Remove a name, if it exists; of a link, what it points to stays."""
    with suppress(FileNotFoundError):
        name, directory = _at(path)
        os.unlink(name, dir_fd=directory)


def remove_link(path: Path) -> None:
    """Remove a name that a library is about to open by its path, unless it is that of a regular file with one name."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not S_ISREG(status.st_mode) or status.st_nlink > 1:
            path.unlink()


def rename_own(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Rename a file in its directory; a file or link that has the new name is replaced, not followed."""
    (old_name, old_directory), (new_name, new_directory) = _at(old), _at(new)
    os.replace(old_name, new_name, src_dir_fd=old_directory, dst_dir_fd=new_directory)


def own_exists(path: str | os.PathLike[str]) -> bool:
    """Return whether a name exists; a broken link exists too."""
    try:
        name, directory = _at(path)
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


@contextmanager
def pin_directory(path: Path) -> Iterator[None]:
    """Open the files of a directory relative to its descriptor while this lasts, and create it if it does not exist.

    Replacing the directory by a link meanwhile has no effect.

    Args:
        path: absolute; its parents may be links, the directory itself may not.

    Raises:
        NotRegularFileError: it is a link, or not a directory.
        OSError: it cannot be created or opened.
    """
    with suppress(FileExistsError):  # whatever it is, it is checked next
        path.mkdir(mode=_NEW_DIRECTORY_MODE, parents=True, exist_ok=True)
    check_directory(path)
    if os.open not in os.supports_dir_fd:
        yield
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NO_LINKS | _FLAGS)
    except OSError as error:
        raise NotRegularFileError(error.errno, "it is a link, or not a directory", str(path)) from error
    pin = _pinned(str(path), descriptor)
    try:
        yield
    finally:
        _unpin(str(path), pin)


def _pinned(path: str, descriptor: int) -> _Pin:
    """Pin a descriptor, or close it if the same directory is pinned already: in another thread, or by a caller."""
    with _PINS_LOCK:
        pins = _PINNED.get(path, ())
        if pins and os.path.samestat(os.fstat(pins[-1].descriptor), os.fstat(descriptor)):
            os.close(descriptor)
            pins[-1].users += 1
            return pins[-1]
        pin = _Pin(descriptor)
        _PINNED[path] = (*pins, pin)
        return pin


def _unpin(path: str, pin: _Pin) -> None:
    with _PINS_LOCK:
        pin.users -= 1
        if pin.users:
            return
        remaining = tuple([one for one in _PINNED[path] if one is not pin])
        if remaining:
            _PINNED[path] = remaining
        else:
            del _PINNED[path]
        os.close(pin.descriptor)


def check_directory(path: Path) -> None:
    """Check that a path names a directory and not a link to one.

    Raises:
        NotRegularFileError: it is a link, or not a directory.
        OSError: it does not exist.
    """
    mode = path.lstat().st_mode
    if S_ISLNK(mode):
        raise NotRegularFileError(
            errno.ELOOP, "it is a link, and links in place of a state directory are not followed", str(path)
        )
    if not S_ISDIR(mode):
        raise NotRegularFileError(errno.ENOTDIR, "it is not a directory", str(path))


def _at(path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """Return a name and the descriptor that it is relative to: that of its pinned directory, or None."""
    text = os.fspath(path)
    if _PINNED:
        parent, name = os.path.split(text)
        pins = _PINNED.get(parent)
        if pins:
            return name, pins[-1].descriptor
    return text, None


def _open_at(path: str | os.PathLike[str], flags: int) -> int:
    name, directory = _at(path)
    try:
        return os.open(name, flags | _FLAGS | _NO_WAIT | _NO_LINKS, _NEW_FILE_MODE, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            reason = "it is a link, and links in place of a job's own files are not followed; delete it"
            raise NotRegularFileError(errno.ELOOP, reason, os.fspath(path)) from error
        if error.filename is not None:
            error.filename = os.fspath(path)
        raise


def _open(descriptor: int, path: str | os.PathLike[str], mode: str) -> BinaryIO:
    """Return a file object of a descriptor after checking what it is."""
    try:
        mode_bits = os.fstat(descriptor).st_mode
        if S_ISDIR(mode_bits):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not S_ISREG(mode_bits):
            raise NotRegularFileError(errno.EINVAL, "not a regular file", os.fspath(path))
        return cast("BinaryIO", os.fdopen(descriptor, mode, buffering=0 if mode == "ab+" else -1))
    except BaseException:
        os.close(descriptor)
        raise
