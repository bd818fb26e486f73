"""Locks on open files: the system releases them when the file is closed or its process ends, however it ends."""

from __future__ import annotations

from typing import IO


def lock(file: IO[bytes]) -> bool:
    """Keep every other opening of a file from locking it, also in this process, until it is closed.

    Returns:
        Whether the file is locked; False if the system or the file system has no locks.

    Raises:
        BlockingIOError: somebody else has the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have no locks
        return False
    return True


def is_locked(file: IO[bytes]) -> bool:
    """Return whether somebody else has locked a file; False also if that cannot be known.

    The test takes a shared lock for a moment, so that any number of processes can test at once; whoever wants the lock
    must therefore retry for a moment.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(file.fileno(), fcntl.LOCK_UN)
    return False
