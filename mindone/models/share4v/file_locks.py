"""Locks on open files: the system releases them when the file is closed or its process ends, however it ends."""

from __future__ import annotations

import time
from typing import IO

_ATTEMPTS, _PAUSE = 3, 0.1  # seconds between two attempts: `is_locked` has a lock for a moment


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
    attempts = _ATTEMPTS
    while True:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            attempts -= 1
            if not attempts:
                raise
            time.sleep(_PAUSE)
        except OSError:  # some network file systems have no locks
            return False


def is_locked(file: IO[bytes]) -> bool:
    """Return whether somebody else has locked a file; False also if that cannot be known.

    The test takes a shared lock for a moment, so that any number of processes can test at once; who wants the lock, by
    `lock` or otherwise, must therefore retry for a moment.
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
