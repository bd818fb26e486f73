"""Presets from a mirror: a plain web server with one directory per preset.

As in huggingface.py, what downloads is imported when it is needed.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..display import redacted
from .cache import FILE_NAME, choose_files, is_recorded, is_weights, locked, read_record, require_space, write_record
from .errors import HubError
from .presets import Preset, is_required

MIRROR_VARIABLE = "SHARE4V_MIRROR"
# The mirror of MindSpore weights. Unverified: its files could not be listed so far. Its layout is assumed
# to be that of every mirror: <base>/<preset>/manifest.json, else the preset's known files in <base>/<preset>/.
BUILT_IN_MIRROR = "https://download-mindspore.osinfra.cn/toolkits/mindone/sharegpt_4v"
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILES = 1000  # of one checkpoint
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class ListedFile:
    """A file of a preset on a mirror; size and sha256 are known if the mirror has a manifest.

    Without a manifest it is unknown which of a preset's files the mirror has; files that are not required may be
    missing.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    required: bool = True


def mirror_base() -> str:
    """Return SHARE4V_MIRROR, or the built-in address."""
    return (os.environ.get(MIRROR_VARIABLE) or BUILT_IN_MIRROR).rstrip("/")


def preset_directory(name: str, root: Path) -> Path:
    """Return the directory for a preset that is downloaded from a mirror."""
    return root / "models" / name


def partial_directory(directory: Path) -> Path:
    """Return where a download's files are until all of them are complete."""
    return directory.with_name(f"{directory.name}.partial")


def cached_preset(name: str, root: Path, weights: bool) -> Path | None:
    """Return the directory of a preset that was downloaded completely, else None."""
    directory = preset_directory(name, root)
    return directory if is_recorded(directory, weights) else None


def fetch_preset(name: str, preset: Preset, root: Path, weights: bool, progress: bool | None = None) -> Path:
    """Download a preset; if several processes request it at the same time, one downloads and the others wait.

    Raises:
        HubError: the mirror does not have it, or not all of its files.
        NoSpaceError: the disk has too little free space.
    """
    directory = preset_directory(name, root)
    with locked(directory):
        present = cached_preset(name, root, weights)
        if present is not None:
            return present
        base = f"{mirror_base()}/{name}"
        listed = _listing(base, preset)
        names = [item.name for item in listed]
        chosen = set(choose_files(names, weights))
        if "config.json" not in chosen:
            raise HubError(f"{redacted(base)} lists no config.json")
        outdated = _outdated(listed, directory)
        _fetch_files(base, [item for item in listed if item.name in chosen], directory, weights, outdated, progress)
        _clean_up(partial_directory(directory), set(choose_files(names, weights=True)) - chosen)
    return directory


def _listing(base: str, preset: Preset) -> list[ListedFile]:
    """Return the files in the mirror's manifest, or the preset's known files if there is no manifest."""
    from .download import ABSENT_STATUS
    from .transfer import fetch_json

    url = f"{base}/{MANIFEST}"
    shown = redacted(url)
    try:
        manifest = fetch_json(url, MAX_MANIFEST_BYTES, absent=ABSENT_STATUS if preset.files else frozenset())
        if manifest is None:
            return [ListedFile(name, required=is_required(name)) for name in preset.files]
        items = manifest["files"]
        if not isinstance(items, list) or len(items) > MAX_FILES:
            raise ValueError(f"expected a list of at most {MAX_FILES} files")
        files = [_listed(item) for item in items]
        if len({item.name for item in files}) < len(files):
            raise ValueError("a name is listed twice")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(f"{shown} is not a manifest of files with name, size and sha256: {error}") from None
    return files


def _listed(item: dict) -> ListedFile:
    name, size, sha256 = item["name"], item.get("size"), item.get("sha256")
    is_name = isinstance(name, str) and FILE_NAME.fullmatch(name)  # no path separators, so nothing is written elsewhere
    is_size = size is None or (type(size) is int and size >= 0)
    is_hash = sha256 is None or (isinstance(sha256, str) and SHA256.fullmatch(sha256))
    if not (is_name and is_size and is_hash):
        raise ValueError(f"entry {item!r:.200}")
    return ListedFile(name, size, sha256)


def _fetch_files(
    base: str, files: list[ListedFile], directory: Path, weights: bool, outdated: set[str], progress: bool | None
) -> None:
    """Download into a separate directory, then move the complete files into place; the rest of it stays.

    The record is replaced in between, when the files that it had and that are replaced are gone. However this ends, it
    never names a file of another version, and the weights that an earlier download completed stay recorded.
    """
    from .download import sha256_of, traces_of

    partial = partial_directory(directory)
    partial.mkdir(exist_ok=True)
    known = {item["name"]: item for item in (read_record(directory) or {"files": []})["files"]}
    wanted = [item for item in files if not _same(known.get(item.name), item, directory)]
    # What arrived of these files; the weights of an interrupted download, which is there too, saves them no space.
    here = sum(path.stat().st_size for item in wanted for path in traces_of(partial / item.name) if path.is_file())
    require_space(partial, max(0, sum(item.size or 0 for item in wanted) - here))
    for item in wanted:
        # An interrupted run may have left a complete file, which only a published hash can confirm.
        left = partial / item.name
        if not (left.is_file() and item.sha256 and item.sha256.lower() == sha256_of(left)):
            _download(base, item, left, progress)
    directory.mkdir(exist_ok=True)
    arrived = [item for item in wanted if (partial / item.name).is_file()]
    for item in arrived:
        (directory / item.name).unlink(missing_ok=True)
    places = {item: directory for item in files if item not in wanted} | dict.fromkeys(arrived, partial)
    entries = [
        {"name": item.name, "size": (place / item.name).stat().st_size, "sha256": item.sha256}
        for item, place in places.items()
    ]
    write_record(directory, redacted(base), weights, entries, outdated=outdated)
    for item in arrived:
        (partial / item.name).replace(directory / item.name)


def _clean_up(partial: Path, keep: set[str]) -> None:
    """Delete what downloads left, such as files of an earlier version, except what arrived of the files `keep`.

    Those are the weights, when only small files are wanted now: an interrupted download may have left all of them.
    """
    from .download import traces_of

    kept = {path for name in keep for path in traces_of(partial / name)}
    for path in list(partial.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path not in kept:
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):  # it is not empty
        partial.rmdir()


def _outdated(listed: list[ListedFile], directory: Path) -> set[str]:
    """Return the recorded weights of which the mirror has another version, or none."""
    stated = {item.name: item for item in listed}
    outdated = set()
    for known in (read_record(directory) or {"files": []})["files"]:
        item = stated.get(known["name"])
        is_same = item is not None and all(
            None in pair or pair[0] == pair[1]
            for pair in ((item.size, known.get("size")), (item.sha256, known.get("sha256")))
        )
        if is_weights(known["name"]) and not is_same:
            outdated.add(known["name"])
    return outdated


def _download(base: str, item: ListedFile, target: Path, progress: bool | None) -> None:
    from .download import AbsentError, RemoteFile, download

    try:
        download(RemoteFile(f"{base}/{item.name}", item.size, item.sha256), target, progress)
    except AbsentError:
        if item.required:
            raise
        target.unlink(missing_ok=True)  # left by an earlier run; the mirror no longer has the file


def _same(known: dict | None, item: ListedFile, directory: Path) -> bool:
    """Return whether a file was downloaded before, as when configs are fetched before weights."""
    if known is None or item.sha256 is None or known.get("sha256") != item.sha256:
        return False
    path = directory / item.name
    return path.is_file() and path.stat().st_size == known.get("size")
