"""Which named checkpoints exist, which are on this machine, and removing downloads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..suggestions import unknown
from .cache import cache_root, has_all_files, is_recorded, locked
from .errors import HubError
from .huggingface import cached_repo
from .mirror import partial_directory, preset_directory
from .presets import PRESETS, embedded_directory, preset_of
from .selection import has_other

_REPO_PREFIX = "models--"  # of a repository's folder in the layout of huggingface_hub's cache


@dataclass(frozen=True)
class ModelEntry:
    """A named checkpoint.

    Attributes:
        name: what `--model` accepts.
        repo: owner/name on the Hugging Face hub; None for a checkpoint that comes with the package.
        download_bytes: about how much a download takes; None if it is unknown, or if there is nothing to download.
        directories: where it is on this machine.
        bytes_on_disk: size of the directories.
        status: "included" (in the package), "cached", "partial" (a download that was not completed), "elsewhere" (only
            in Hugging Face's own cache) or "not cached".
    """

    name: str
    repo: str | None
    download_bytes: int | None
    directories: tuple[Path, ...] = ()
    bytes_on_disk: int = 0
    status: str = "not cached"


def list_models(cache_dir: str | Path | None = None) -> list[ModelEntry]:
    """Return the presets, and then the repositories in the download cache; nothing is downloaded.

    Args:
        cache_dir: as in `resolve`.

    Raises:
        FileNotFoundError: the user has no home directory, and no other directory for downloads is set.

    Example:
        >>> from mindone.models.share4v.hub.inventory import list_models
        >>> [entry.status for entry in list_models() if entry.name == "sharegpt4v-tiny"]
        ['included']
    """
    root = cache_root(cache_dir)
    entries = [_preset_entry(name, root) for name in PRESETS]
    known = {entry.repo for entry in entries}
    for repo in _cached_repos(root):
        if repo not in known:
            entries.append(_entry(repo, repo, None, root, (_repo_directory(repo, root),)))
    return entries


def remove_model(name: str, cache_dir: str | Path | None = None) -> ModelEntry:
    """Delete a checkpoint from the download cache, complete or not, and return what it was when it was deleted.

    A process that downloads it is waited for, and what it completes is deleted too.

    Args:
        name: name of a preset, or owner/name.
        cache_dir: as in `resolve`.

    Raises:
        HubError: the name is unknown, or the checkpoint is not in the download cache.
        OSError: a file cannot be deleted.
    """
    entry, root = _entry_of(name, cache_dir), cache_root(cache_dir)
    if entry.status == "included":
        raise HubError(f"{name} is a part of the package, not a download: it cannot be removed")
    own = [path for path in entry.directories if path.is_relative_to(root)]
    if not own:
        shared = f"; Hugging Face's own cache has it in {entry.directories[0]}" if entry.directories else ""
        raise HubError(f"{name} is not in the download cache {root}{shared}")
    preset = preset_directory(entry.name, root)
    # Both directories of a preset have one lock, which is held until both are deleted: a download that got in between
    # would move what it completes from the second to the first.
    of_preset = (preset, partial_directory(preset))
    by_lock: dict[Path, tuple[Path, ...]] = {preset: of_preset} if any(path in of_preset for path in own) else {}
    by_lock |= {path: (path,) for path in own if path not in of_preset}
    with ExitStack() as stack:
        for directory in by_lock:
            stack.enter_context(locked(directory))
        # Another process may have completed it, or removed it, while this one waited.
        found = [path for paths in by_lock.values() for path in paths if path.is_dir()]
        removed = _entry_of(name, cache_dir) if found else entry
        for path in found:
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path)
    return removed


def _entry_of(name: str, cache_dir: str | Path | None) -> ModelEntry:
    entries = list_models(cache_dir)
    entry = next((entry for entry in entries if name in (entry.name, entry.repo)), None)
    if entry is None:
        raise HubError(unknown("checkpoint", name, [one.name for one in entries]))
    return entry


def _preset_entry(name: str, root: Path) -> ModelEntry:
    preset = PRESETS[name]
    if preset.embedded is not None:
        directory = embedded_directory(name, preset.embedded)
        return ModelEntry(name, None, None, (directory,), _size(directory), "included")
    directories = [preset_directory(name, root), partial_directory(preset_directory(name, root))]
    if preset.repo is not None:
        directories.append(_repo_directory(preset.repo, root))
    return _entry(name, preset.repo, preset.size, root, tuple(directories))


def _entry(name: str, repo: str | None, size: int | None, root: Path, candidates: tuple[Path, ...]) -> ModelEntry:
    found = tuple(path for path in candidates if path.is_dir())
    if found:
        status = "cached" if any(map(_is_complete, found)) else "partial"
        return ModelEntry(name, repo, size, found, sum(map(_size, found)), status)
    elsewhere = None if repo is None else cached_repo(repo, root, weights=True)
    if elsewhere is not None:
        return ModelEntry(name, repo, size, (elsewhere,), _size(elsewhere), "elsewhere")
    return ModelEntry(name, repo, size)


def _is_complete(directory: Path) -> bool:
    snapshots = [directory, *directory.glob("snapshots/*")]
    return any(
        (is_recorded(path, weights=True) and has_all_files(path, weights=True)) or has_other(path) for path in snapshots
    )


def _repo_directory(repo: str, root: Path) -> Path:
    return root / "huggingface" / f"{_REPO_PREFIX}{repo.replace('/', '--')}"


def _cached_repos(root: Path) -> Iterator[str]:
    """Yield the names of the repositories in the cache."""
    for path in sorted((root / "huggingface").glob(f"{_REPO_PREFIX}*--*")):
        repo = path.name.removeprefix(_REPO_PREFIX).replace("--", "/", 1)
        if path.is_dir() and preset_of(repo) is None:
            yield repo


def _size(directory: Path) -> int:
    """Return the size of the files in a directory; a file that a link leads to counts once."""
    sizes = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                status = (Path(folder) / name).stat()
            except OSError:  # a broken link, or a file that was deleted meanwhile
                continue
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
