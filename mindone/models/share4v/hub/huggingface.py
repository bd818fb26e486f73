"""Checkpoints from the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cache import choose_files, has_companions, is_recorded, is_whole, require_space, write_record
from .download import sha256_of
from .errors import HubError

DEFAULT_ENDPOINT = "https://huggingface.co"


def endpoint() -> str:
    """Return HF_ENDPOINT, or the hub's own address. Read at each call, not once at import."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def cached_repo(repo: str, root: Path, weights: bool) -> Path | None:
    """Return a repository's snapshot that is here and whole: in our cache, or in Hugging Face's own.

    Ours has a record of what was completed. In Hugging Face's own, other programs fetch the files that they need.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for cache_dir in (root / "huggingface", None):
        is_ours = cache_dir is not None
        try:
            snapshot = Path(snapshot_download(repo, cache_dir=cache_dir, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, FileNotFoundError):
            continue
        known_whole = is_recorded(snapshot, weights) if is_ours else has_companions(snapshot)
        if known_whole and is_whole(snapshot, weights):
            return snapshot
    return None


def fetch_repo(repo: str, root: Path, weights: bool, progress: bool | None = None) -> Path:
    """Download what a checkpoint needs of a repository.

    Raises:
        HubError: it cannot be had; the message has the library's reason.
        NoSpaceError: the disk has too little room.
    """
    from huggingface_hub import HfApi, snapshot_download

    cache_dir = root / "huggingface"
    cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        info = HfApi(endpoint=endpoint()).model_info(repo, files_metadata=True)
        siblings = {item.rfilename: item for item in info.siblings or []}
        chosen = choose_files(siblings, weights)
        if "config.json" not in chosen:
            raise HubError(f"{endpoint()}/{repo} has no config.json, so it is no checkpoint")
        fresh = [name for name in chosen if not _is_cached(repo, name, cache_dir, info.sha)]
        require_space(cache_dir, sum(siblings[name].size or 0 for name in fresh))
        with _bars(progress):
            path = snapshot_download(repo, cache_dir=cache_dir, allow_patterns=chosen, endpoint=endpoint())
    except HubError:
        raise
    except Exception as error:  # huggingface_hub raises its own, requests' and the system's errors
        reason = (str(error).strip().splitlines() or [""])[0]
        raise HubError(f"{endpoint()}/{repo}: {type(error).__name__}: {reason}") from error
    snapshot = Path(path)
    for name in fresh:
        _check_hash(snapshot / name, siblings[name], repo)
    if not is_whole(snapshot, weights):
        raise HubError(f"{endpoint()}/{repo} has no weights in a form that is known here, or not all of its shards")
    sizes = [{"name": name, "size": (snapshot / name).stat().st_size} for name in chosen]
    write_record(snapshot, f"{endpoint()}/{repo}", weights, sizes)
    return snapshot


def _is_cached(repo: str, name: str, cache_dir: Path, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision), str)


def _check_hash(path: Path, sibling: Any, repo: str) -> None:
    """The library checks sizes; the hub states the hash of large files as well."""
    expected = sibling.lfs.sha256 if sibling.lfs else None
    if expected and path.is_file():
        found = sha256_of(path)
        if found != expected:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise HubError(f"{endpoint()}/{repo} gave {path.name} with sha256 {found}, expected {expected}")


@contextmanager
def _bars(progress: bool | None) -> Iterator[None]:
    """Show the library's bars only where ours would be shown."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = sys.stderr.isatty() if progress is None else progress
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
