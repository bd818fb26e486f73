"""resolve: from a name or a path to a directory on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..suggestions import unknown
from .cache import cache_root
from .errors import HubError, NoSpaceError
from .huggingface import cached_repo, endpoint, fetch_repo
from .mirror import cached_preset, fetch_preset, mirror_base, preset_directory
from .presets import PRESETS, embedded_directory, preset_of

OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
TRUE_VALUES = ("1", "on", "yes", "true")


def is_checkpoint_name(name: str) -> bool:
    """Tell whether this is a preset's name or has the form owner/name; neither says that it exists."""
    return preset_of(name) is not None or OWNER_AND_NAME.fullmatch(name) is not None


def is_offline(local_files_only: bool = False) -> bool:
    """Tell whether the network must not be touched: asked for, or HF_HUB_OFFLINE is set."""
    return local_files_only or os.environ.get("HF_HUB_OFFLINE", "").lower() in TRUE_VALUES


def resolve(
    name_or_path: str | Path,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    weights: bool = True,
    progress: bool | None = None,
) -> Path:
    """Return the directory of a checkpoint, downloading it if it is not here yet.

    Sources, in order: what came with the package, the cache, the mirror (SHARE4V_MIRROR, else the built-in address),
    the Hugging Face hub (HF_ENDPOINT).

    Args:
        name_or_path: a directory, a preset's name (see PRESETS), or owner/name on the Hugging Face hub.
        cache_dir: where downloads are kept; by default SHARE4V_HOME, else ~/.cache/share4v.
        local_files_only: use what is here and open no connection; HF_HUB_OFFLINE=1 does the same.
        weights: False fetches configs, tokenizer and preprocessor files alone.
        progress: show bars on standard error; None shows them if that is a terminal.

    Raises:
        FileNotFoundError: a path that is not there, or that is a file.
        HubError: the name is not known, or no source has it; the message says everything that was tried.
        NoSpaceError: the disk has too little room; the message has both numbers.

    Example:
        >>> from mindone.models.share4v.hub import resolve
        >>> resolve("sharegpt4v-7b", local_files_only=True)  # doctest: +SKIP
        PosixPath('/home/user/.cache/share4v/models/sharegpt4v-7b')
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    row = preset_of(name)
    is_name = isinstance(name_or_path, str) and is_checkpoint_name(name)
    # A folder that happens to be called like a checkpoint does not hide it, unless it is one.
    if path.is_dir() and (not is_name or (path / "config.json").is_file()):
        return path
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file: give the directory that holds it together with its config.json")
    if not is_name:
        raise _not_a_checkpoint(name_or_path)
    if row is not None and row[1].embedded is not None:
        return embedded_directory(row[0], row[1].embedded)
    return _from_hubs(name, cache_root(cache_dir), is_offline(local_files_only), weights, progress)


def _not_a_checkpoint(name_or_path: str | Path) -> OSError:
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in name or name.startswith(("~", ".")):
        return FileNotFoundError(f"there is no directory {name}")
    return HubError(
        f"{unknown('checkpoint', name, PRESETS)} Give one of these names, the path of a directory, or owner/name of a "
        "repository on the Hugging Face hub"
    )


def _from_hubs(name: str, root: Path, offline: bool, weights: bool, progress: bool | None) -> Path:
    row = preset_of(name)
    repo = name if row is None else row[1].repo
    tried = [f"directory {name}: not there"]
    if row is not None:
        found = cached_preset(row[0], root, weights)
        if found is not None:
            return found
        tried.append(f"cache {preset_directory(row[0], root)}: not there, or not whole")
    if repo is not None:
        found = cached_repo(repo, root, weights)
        if found is not None:
            return found
        tried.append(f"cache {root / 'huggingface'} and Hugging Face's own: {repo} is not there, or not whole")
    if offline:
        tried.append("the network: not touched, because of local_files_only or HF_HUB_OFFLINE")
        raise _not_found(name, tried)
    if row is not None:
        try:
            return fetch_preset(row[0], row[1], root, weights, progress)
        except NoSpaceError:
            raise
        except HubError as error:
            tried.append(f"mirror {mirror_base()}: {error}")
    if repo is not None:
        try:
            return fetch_repo(repo, root, weights, progress)
        except NoSpaceError:
            raise
        except HubError as error:
            tried.append(f"Hugging Face hub {endpoint()}: {error}")
    raise _not_found(name, tried)


def _not_found(name: str, tried: list[str]) -> HubError:
    lines = "\n".join(f"- {line}" for line in tried)
    return HubError(
        f"{name!r} cannot be had. Tried:\n{lines}\nDownload it by other means and give its directory, or set "
        "SHARE4V_MIRROR or HF_ENDPOINT to an address that can be reached"
    )
