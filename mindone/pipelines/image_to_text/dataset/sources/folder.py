"""A folder: its pictures and videos, and those of the folders in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..keys import fold, key_pair, safe_key, without_suffix
from .base import Found, Place, SourceOptions, failure, is_media, locate_file
from .kinds import SHARDS, found_in, kind_of_file
from .patterns import matches

STATE_SUFFIX = ".share4v"  # a job's own directory, beside its output or inside


@dataclass(frozen=True)
class _Folder:
    """A directory on the way down.

    Attributes:
        path: absolute.
        inside: relative to where the walk began, "" or "cats/".
        above: device and inode of it and of the directories above it; a link back to one of them is a loop.
    """

    path: str
    inside: str
    above: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class _Entry:
    name: str
    is_directory: bool


def single_file(place: Place, options: SourceOptions) -> Iterator[Found]:
    """Yield one picture or video."""
    key, full_key = key_pair(place.prefix + os.path.basename(place.path))
    locator = locate_file(place.path, options)
    yield Found(key, full_key, place.name, locator, beside=os.path.dirname(place.path), once=True)


def shards(place: Place, options: SourceOptions) -> Iterator[Found]:
    """Yield what is in the shards of a folder that holds nothing else."""
    inside = Place("folder", place.path, place.name, place.prefix, tuple(f"./*.{kind}*" for kind in SHARDS))
    yield from folder(inside, options)


def folder(place: Place, options: SourceOptions) -> Iterator[Found]:
    """Yield what is in a folder, in the order of its names; memory holds the names of one directory at a time.

    Links are followed, except back to a directory that the walk came through. What cannot be read fails by itself.
    """
    include = (*options.include, *place.include)
    start = _Folder(place.path, "", frozenset())
    pending: list[Iterator[Found | _Folder]] = [_entries(start, place, options, include)]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
        elif isinstance(found, _Folder):
            pending.append(_entries(found, place, options, include))
        else:
            yield found


def _entries(
    within: _Folder, place: Place, options: SourceOptions, include: tuple[str, ...]
) -> Iterator[Found | _Folder]:
    """Yield what is in one directory; directories inside it as they come in order."""
    shown = os.path.join(place.name, within.inside)
    try:
        status = os.stat(within.path)
        identity = (status.st_dev, status.st_ino)
        if identity in within.above:
            return
        names, entries = _scan(within, options, include)
        around = names if options.caption_root is None else _names_under(options.caption_root, place, within)
    except OSError as error:
        key = safe_key(place.prefix + within.inside + "-")
        yield failure(key, shown, f"the directory cannot be read: {error.strerror or error}")
        return
    stems = Counter(fold(without_suffix(entry.name)) for entry in entries if not entry.is_directory)
    full_names = {fold(entry.name) for entry in entries if not entry.is_directory}
    above = within.above | {identity}
    for entry in entries:
        path = os.path.join(within.path, entry.name)
        if entry.is_directory:
            yield _Folder(path, f"{within.inside}{entry.name}/", above)
            continue
        shown_path = os.path.join(shown, entry.name)
        if not is_media(entry.name):
            kind = kind_of_file(entry.name)
            if kind is not None:
                yield from found_in(Place(kind, path, shown_path, place.prefix + within.inside), options)
            continue
        stem = without_suffix(entry.name)
        is_alone = stems[fold(stem)] == 1 and fold(stem) not in full_names
        key, full_key = key_pair(place.prefix + within.inside + entry.name)
        yield Found(
            key if is_alone else full_key,
            full_key,
            shown_path,
            locate_file(path, options),
            beside=within.path,
            names=around,
            once=True,
        )


def _scan(within: _Folder, options: SourceOptions, include: tuple[str, ...]) -> tuple[Collection[str], list[_Entry]]:
    """Return all names of a directory, and in order those that are to be looked at."""
    names, entries = set(), []
    with os.scandir(within.path) as found:
        for entry in found:
            names.add(entry.name)
            if (entry.name.startswith(".") and not options.hidden) or entry.name.endswith(STATE_SUFFIX):
                continue
            inside = within.inside + entry.name
            if any(matches(inside, pattern) for pattern in options.exclude):
                continue
            is_wanted = any(matches(inside, pattern) for pattern in include) if include else is_media(entry.name)
            kind = _kind(entry)
            if kind == "directory" or (kind == "file" and is_wanted):
                entries.append(_Entry(entry.name, kind == "directory"))
    return names, sorted(entries, key=lambda entry: os.fsencode(entry.name))


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "directory", "file" or "other". A link to nowhere is a file: it fails later, and somebody learns of it."""
    try:
        if entry.is_dir():
            return "directory"
        return "file" if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry)) else "other"
    except OSError:  # a link to itself
        return "file"


def _names_under(root: str, place: Place, within: _Folder) -> Collection[str]:
    """Return what is in the directory under the root of captions that belongs to this one."""
    inside = place.prefix + within.inside
    try:
        return set(os.listdir(os.path.join(root, safe_key(inside)) if inside else root))
    except (FileNotFoundError, NotADirectoryError):
        return ()
