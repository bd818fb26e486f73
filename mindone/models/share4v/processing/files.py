"""The directory with the small files of a checkpoint: tokenizer, image processor, config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..home_directory import expand_home
from ..hub import RepoOptions, is_checkpoint_name, resolve
from ..hugging_face import FILES
from ..load_options import CheckpointOptions, checked_options


def find_directory(name_or_path: str | Path, options: Mapping[str, Any]) -> Path:
    """Return the directory of a checkpoint's small files, downloaded if necessary; a directory need not be complete.

    Args:
        name_or_path: a directory, a known name, or owner/name on a hub.
        options: the fields of CheckpointOptions.

    Raises:
        FileNotFoundError, HubError: it was not found.
        TypeError, ValueError: an option is unknown or malformed.
    """
    load = CheckpointOptions(**checked_options(FILES, options, CheckpointOptions))
    path = expand_home(name_or_path)
    if path.is_dir() and not (isinstance(name_or_path, str) and is_checkpoint_name(name_or_path)):
        return path / load.subfolder
    if not path.exists() and isinstance(name_or_path, Path):
        return path / load.subfolder  # the caller's error names the missing file
    repo_options = RepoOptions(load.revision, load.token, load.subfolder)
    return resolve(name_or_path, load.cache_dir, load.local_files_only, weights=False, repo_options=repo_options)
