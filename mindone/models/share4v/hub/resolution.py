"""resolve: the directory of a checkpoint, from its name or path."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from ..display import redacted
from ..home_directory import expand_home
from ..suggestions import unknown
from .cache import cache_root
from .directories import CONFIG_NAME, describe_directory
from .errors import HubError, NoSpaceError
from .gguf_files import is_gguf
from .huggingface import cached_repo, endpoint, fetch_repo
from .mirror import cached_preset, fetch_preset, mirror_base, preset_directory
from .options import RepoOptions
from .presets import PRESETS, embedded_directory, preset_of

OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# With the quantization of a GGUF repository, or the name of one of its files.
_TAGGED = re.compile(rf"(?P<name>{OWNER_AND_NAME.pattern}):(?P<tag>[A-Za-z0-9_][\w.-]*)")
# An adapter may be in a folder of its repository.
_ADAPTER = re.compile(rf"(?P<name>{OWNER_AND_NAME.pattern})(?:/(?P<folder>[\w.-]+(?:/[\w.-]+)*))?")
TRUE_VALUES = ("1", "on", "yes", "true")
_OFFLINE = "the network: not used, because of local_files_only or HF_HUB_OFFLINE"


def is_checkpoint_name(name: str) -> bool:
    """Return whether this is a preset's name or has the format owner/name or owner/name:TAG; it may not exist."""
    return preset_of(name) is not None or any(pattern.fullmatch(name) for pattern in (OWNER_AND_NAME, _TAGGED))


def split_tag(name: str) -> tuple[str, str]:
    """Return a repository's name, and which of its GGUF files is meant; empty if the name does not say it.

    Example:
        >>> from mindone.models.share4v.hub import split_tag
        >>> split_tag("owner/name-GGUF:Q4_0"), split_tag("owner/name")
        (('owner/name-GGUF', 'Q4_0'), ('owner/name', ''))
    """
    found = _TAGGED.fullmatch(name)
    return (name, "") if found is None else (found["name"], found["tag"])


def is_offline(local_files_only: bool = False) -> bool:
    """Return whether the network must not be used: the caller asks for it, or HF_HUB_OFFLINE is set."""
    return local_files_only or os.environ.get("HF_HUB_OFFLINE", "").lower() in TRUE_VALUES


def resolve(
    name_or_path: str | Path,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    weights: bool = True,
    progress: bool | None = None,
    before_weights: Callable[[Path], object] | None = None,
    repo_options: RepoOptions | None = None,
) -> Path:
    """Return the directory of a checkpoint, after downloading what is not on this machine yet.

    Sources, in order: checkpoints that come with the package, the cache, the mirror (SHARE4V_MIRROR, else the built-in
    address), the Hugging Face hub (HF_ENDPOINT).

    Args:
        name_or_path: a directory, a preset's name (see PRESETS), or owner/name on the Hugging Face hub; owner/name:TAG
            for one of its GGUF models, where TAG is a quantization or a file's name.
        cache_dir: directory for downloads; by default SHARE4V_HOME, else ~/.cache/share4v.
        local_files_only: use only files on this machine and open no connection; HF_HUB_OFFLINE=1 does the same.
        weights: False fetches only configs, tokenizer and preprocessor files.
        progress: show progress bars on standard error; None shows them if that is a terminal.
        before_weights: called with a directory of the small files before weights are downloaded, which can be many
            gigabytes; an exception that it raises stops the download.
        repo_options: the revision and the folder of a repository on the Hugging Face hub, and the token to use; the
            mirror is not asked for a revision or a folder. A directory may have a subfolder too.

    Returns:
        The directory; of a repository whose weights are GGUF files, the path of the language model's file.

    Raises:
        ValueError: a revision is given for a directory or for a checkpoint of this package.
        FileNotFoundError: the path does not exist, is a file, or is a directory that is no checkpoint.
        HubError: the name is unknown, or no source has the checkpoint; the message lists everything that was tried.
        NoSpaceError: the disk has too little free space; the message gives both numbers.

    Example:
        >>> from mindone.models.share4v import resolve
        >>> resolve("sharegpt4v-tiny").name
        'sharegpt4v-tiny'
        >>> resolve("sharegpt4v-7b", local_files_only=True)  # doctest: +SKIP
        PosixPath('/home/user/.cache/share4v/models/sharegpt4v-7b')
    """
    name, path = str(name_or_path), expand_home(name_or_path)
    options = repo_options or RepoOptions()
    is_name = isinstance(name_or_path, str) and is_checkpoint_name(name)
    if is_name and not path.is_dir():
        name, tag = split_tag(name)
        options = options._replace(gguf=tag or options.gguf)
    options.check()
    preset = preset_of(name)
    # A directory with the same name as a known checkpoint is used only if it is a checkpoint itself.
    inside = path / options.subfolder
    if path.is_dir() and (not is_name or (inside / "config.json").is_file()):
        _refuse_revision(options, f"{path} is a directory")
        if not inside.is_dir():
            raise FileNotFoundError(f"there is no directory {inside}: check subfolder")
        return inside
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file: give the directory that holds it together with its config.json")
    if not is_name:
        raise _not_a_checkpoint(name_or_path)
    if preset is not None and preset[1].embedded is not None:
        _refuse_revision(options, f"{name} is part of this package", options.subfolder)
        return embedded_directory(preset[0], preset[1].embedded)
    missing = "has no config.json" if path.is_dir() else "does not exist"
    root, tried = cache_root(cache_dir), [f"directory {name}: {missing}"]
    found = _cached(name, root, weights, tried, options)
    if found is not None:
        return found
    if path.is_dir() and preset is None:  # runs/exp1 is a directory, and not a name on the hub
        raise FileNotFoundError(
            f"the directory {path} exists, but has no {CONFIG_NAME}: {describe_directory(path)}. If you mean the "
            "repository of this name on the Hugging Face hub, run the command in another directory"
        )
    if is_offline(local_files_only):
        tried.append(_OFFLINE)
        raise _not_found(name, tried)
    if weights and before_weights is not None:
        small = _cached(name, root, False, [], options)
        small = small or _download(name, root, False, progress, list(tried), options)
        if is_gguf(small.name):  # its config is in the file itself
            return small
        before_weights(small)
    return _download(name, root, weights, progress, tried, options)


def is_adapter_name(name: str) -> bool:
    """Return whether this has the format of an adapter's name on a hub, owner/name or owner/name/folder."""
    return _ADAPTER.fullmatch(name) is not None


def resolve_adapter(
    name: str,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: bool | None = None,
) -> Path:
    """Return the directory of a LoRA adapter on the Hugging Face hub, downloaded if it is not on this machine yet.

    Args:
        name: owner/name, or owner/name/folder.
        cache_dir, local_files_only, progress: as in `resolve`.
        token: access token of the hub.

    Raises:
        HubError: it was not found, or is no adapter; the message lists what was tried.
        NoSpaceError: as in `resolve`.

    Example:
        >>> from mindone.models.share4v.hub import resolve_adapter
        >>> resolve_adapter("someone/my-lora")  # doctest: +SKIP
        PosixPath('/home/user/.cache/share4v/huggingface/models--someone--my-lora/snapshots/...')
    """
    found = _ADAPTER.fullmatch(name)
    if found is None:
        raise HubError(f"{name!r} is no name of an adapter on a hub: expected owner/name")
    options = RepoOptions(token=token, subfolder=found["folder"] or "", is_adapter=True)
    options.check()
    root, tried = cache_root(cache_dir), [f"directory {name}: does not exist"]
    cached = _cached(found["name"], root, True, tried, options)
    if cached is not None:
        return cached
    if is_offline(local_files_only):
        tried.append(_OFFLINE)
        raise _not_found(name, tried)
    return _download(found["name"], root, True, progress, tried, options)


def _refuse_revision(options: RepoOptions, why: str, subfolder: str = "") -> None:
    """Refuse a revision other than the main one, and a subfolder, where there is none."""
    for what, value in (("revision", options.revision), ("subfolder", subfolder)):
        if value not in (None, "", "main"):
            raise ValueError(f"{what} {value!r} was given, but {why}, which has none: leave {what} out")


def _not_a_checkpoint(name_or_path: str | Path) -> OSError:
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in name or name.startswith(("~", ".")):
        return FileNotFoundError(f"there is no directory {name}")
    return HubError(
        f"{unknown('checkpoint', name, PRESETS)} Give one of these names, the path of a directory, or owner/name of a "
        "repository on the Hugging Face hub"
    )


def _is_plain(options: RepoOptions) -> bool:
    """Return whether the checkpoint in the main revision's top folder is meant, which is what a mirror has."""
    return options.revision in (None, "main") and not (options.subfolder or options.gguf or options.is_adapter)


def _cached(name: str, root: Path, weights: bool, tried: list[str], options: RepoOptions) -> Path | None:
    """Return the directory of a checkpoint that is in a cache; else None, and add to `tried` where it was not found."""
    preset = preset_of(name)
    repo = name if preset is None else preset[1].repo
    if preset is not None and _is_plain(options):
        found = cached_preset(preset[0], root, weights)
        if found is not None:
            return found
        tried.append(f"cache {preset_directory(preset[0], root)}: missing or incomplete")
    if repo is not None:
        found = cached_repo(repo, root, weights, options)
        if found is not None:
            return found
        tried.append(f"cache {root / 'huggingface'} and Hugging Face's own: {repo} is missing or incomplete")
    return None


def _download(
    name: str, root: Path, weights: bool, progress: bool | None, tried: list[str], options: RepoOptions
) -> Path:
    """Download a checkpoint from the mirror, else from the Hugging Face hub."""
    preset = preset_of(name)
    repo = name if preset is None else preset[1].repo
    if preset is not None and _is_plain(options):
        try:
            return fetch_preset(preset[0], preset[1], root, weights, progress)
        except NoSpaceError:
            raise
        except HubError as error:
            tried.append(f"mirror {redacted(mirror_base())}: {error}")
    if repo is not None:
        try:
            return fetch_repo(repo, root, weights, progress, options)
        except NoSpaceError:
            raise
        except HubError as error:
            tried.append(f"Hugging Face hub {redacted(endpoint())}: {error}")
    raise _not_found(name, tried)


def _not_found(name: str, tried: list[str]) -> HubError:
    lines = "\n".join(f"- {line}" for line in tried)
    return HubError(
        f"Could not find or download {name!r}. Tried:\n{lines}\nDownload it yourself and pass its directory, or set "
        "SHARE4V_MIRROR or HF_ENDPOINT to an address that can be reached"
    )
