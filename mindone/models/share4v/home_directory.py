"""Paths that start with `~`, the user's home directory, which not every user has."""

from __future__ import annotations

from pathlib import Path


def expand_home(path: str | Path, advice: str = "write the full path") -> Path:
    """Return a path with `~` at its start replaced by the home directory.

    Raises:
        FileNotFoundError: the user has no home directory, as in many containers; the message ends with `advice`.

    Example:
        >>> from mindone.models.share4v.home_directory import expand_home
        >>> expand_home("/models/7b")
        PosixPath('/models/7b')
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise FileNotFoundError(f"{path}: this user has no home directory: set HOME, or {advice}") from None
