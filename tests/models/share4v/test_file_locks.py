"""Locks on files: one opening has it, and whoever only tests it is in nobody's way."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from mindone.models.share4v import file_locks


def test_one_opening_has_the_lock_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("wb") as first, path.open("wb") as second:
        assert file_locks.lock(first) and file_locks.is_locked(second)
        with pytest.raises(BlockingIOError):
            file_locks.lock(second)
        first.close()
        assert not file_locks.is_locked(second) and file_locks.lock(second)


def test_a_lock_that_is_only_being_tested_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    with path.open("wb") as tester, path.open("wb") as file:
        fcntl.flock(tester.fileno(), fcntl.LOCK_SH)  # as `is_locked` does
        monkeypatch.setattr("time.sleep", lambda seconds: fcntl.flock(tester.fileno(), fcntl.LOCK_UN))
        assert file_locks.lock(file)
