"""A folder: its pictures and videos, and those of the folders in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ..state.keys import fold, key_pair, safe_key, without_suffix
from .base import STATE_SUFFIX, Found, Place, ReaderOptions, failure, is_media, locate_file
from .kinds import SHARDS, found_in, kind_of_file
from .patterns import matches

_DIRECTORY = b"\0"  # put behind a directory's name: no name has it in it, and the order of names stays
_SLOTS = 16  # bytes for each file of a directory in which equal names are looked for


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


def single_file(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield one picture or video."""
    key, full_key = key_pair(place.prefix + os.path.basename(place.path))
    locator = locate_file(place.path, options)
    yield Found(key, full_key, place.name, locator, beside=os.path.dirname(place.path), once=True)


def shards(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield what is in the shards of a folder that holds nothing else."""
    inside = Place("folder", place.path, place.name, place.prefix, tuple(f"./*.{kind}*" for kind in SHARDS))
    yield from folder(inside, options)


def folder(place: Place, options: ReaderOptions) -> Iterator[Found]:
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
    within: _Folder, place: Place, options: ReaderOptions, include: tuple[str, ...]
) -> Iterator[Found | _Folder]:
    """Yield what is in one directory; directories inside it as they come in order."""
    shown = os.path.join(place.name, within.inside)
    try:
        status = os.stat(within.path)
        identity = (status.st_dev, status.st_ino)
        if identity in within.above:
            return
        names, entries = _scan(within, options, include)
        if options.caption_root is not None:
            names = _names_under(options.caption_root, options.caption_suffixes, place, within)
    except OSError as error:
        key = safe_key(place.prefix + within.inside + "-")
        yield failure(key, shown, f"the directory cannot be read: {error.strerror or error}")
        return
    repeated, above = _repeated(entries), within.above | {identity}
    for entry in entries:
        name = os.fsdecode(entry.removesuffix(_DIRECTORY))
        path = os.path.join(within.path, name)
        if entry.endswith(_DIRECTORY):
            yield _Folder(path, f"{within.inside}{name}/", above)
            continue
        shown_path = os.path.join(shown, name)
        if not is_media(name):
            kind = kind_of_file(name)
            if kind is not None:
                yield from found_in(Place(kind, path, shown_path, place.prefix + within.inside), options)
            continue
        key, full_key = key_pair(place.prefix + within.inside + name)
        yield Found(
            full_key if fold(without_suffix(name)) in repeated else key,
            full_key,
            shown_path,
            locate_file(path, options),
            beside=within.path,
            names=names,
            once=True,
        )


def _scan(within: _Folder, options: ReaderOptions, include: tuple[str, ...]) -> tuple[Collection[str], list[bytes]]:
    """Return the names of a directory's captions, and in order what is to be looked at, as bytes, which take less."""
    names: set[str] = set()
    entries: list[bytes] = []
    with os.scandir(within.path) as found:
        for entry in found:
            if entry.name.endswith(options.caption_suffixes):
                names.add(entry.name)
            if (entry.name.startswith(".") and not options.hidden) or entry.name.endswith(STATE_SUFFIX):
                continue
            inside = within.inside + entry.name
            if any(matches(inside, pattern) for pattern in options.exclude):
                continue
            is_wanted = any(matches(inside, pattern) for pattern in include) if include else is_media(entry.name)
            kind = _kind(entry)
            if kind == "directory" or (kind == "file" and is_wanted):
                entries.append(os.fsencode(entry.name) + (_DIRECTORY if kind == "directory" else b""))
    entries.sort()
    return names, entries


def _repeated(entries: Sequence[bytes]) -> Collection[str]:
    """Return the folded names, with and without extension, that files have more than once.

    A rough table comes first: only what shares a slot of it with another is kept as text and counted, not everything.
    """

    def folded() -> Iterator[str]:
        for entry in entries:
            if not entry.endswith(_DIRECTORY):
                name = os.fsdecode(entry)
                yield fold(name)
                yield fold(without_suffix(name))

    slots = bytearray(_SLOTS * len(entries))
    for text in folded():
        slot = hash(text) % len(slots)
        slots[slot] = min(slots[slot] + 1, 2)
    counts = Counter(text for text in folded() if slots[hash(text) % len(slots)] > 1)
    return {text for text, count in counts.items() if count > 1}


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "directory", "file" or "other". A link to nowhere is a file: it fails later, and somebody learns of it."""
    try:
        if entry.is_dir():
            return "directory"
        return "file" if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry)) else "other"
    except OSError:  # a link to itself
        return "file"


def _names_under(root: str, suffixes: tuple[str, ...], place: Place, within: _Folder) -> Collection[str]:
    """Return the names of captions in the directory under their root that belongs to this one."""
    inside = place.prefix + within.inside
    try:
        with os.scandir(os.path.join(root, safe_key(inside)) if inside else root) as found:
            return {entry.name for entry in found if entry.name.endswith(suffixes)}
    except (FileNotFoundError, NotADirectoryError):
        return ()
