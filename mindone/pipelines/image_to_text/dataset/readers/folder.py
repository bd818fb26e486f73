"""Folders: the images and videos in a folder and its subfolders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ..state.keys import fold, key_pair, safe_key, without_suffix
from ..state.paths import STATE_SUFFIX
from ..state.records import Item
from .base import Location, ReaderOptions, file_locator, is_media
from .formats import SHARDS, kind_of_file, list_location
from .item_builder import ItemBuilder
from .patterns import matches

_DIRECTORY = b"\0"  # appended to directory names: no file name contains it, and it does not change the sort order
_BUCKETS_PER_FILE = 16  # bytes of the table that finds equal names


@dataclass(frozen=True)
class _Directory:
    """A directory that the walk enters.

    Attributes:
        path: absolute path.
        inside: path relative to the start of the walk, "" or for example "cats/".
        ancestors: device and inode of the directories above it; a link back to one of them is a loop.
    """

    path: str
    inside: str
    ancestors: frozenset[tuple[int, int]]


def single_file(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield one image or video."""
    if builder.is_new_file(location.path):
        key, full_key = key_pair(location.prefix + os.path.basename(location.path))
        yield builder.build(
            key,
            location.name,
            file_locator(location.path, options),
            full_key=full_key,
            directory=os.path.dirname(location.path),
        )


def shards(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the contents of the shards in a folder that contains nothing else."""
    include = tuple(f"./*.{kind}*" for kind in SHARDS)
    yield from folder(Location("folder", location.path, location.name, location.prefix, include), options, builder)


def folder(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the contents of a folder sorted by name; memory holds the names of one directory per level.

    Links are followed, except back to a directory that the walk is inside of. A directory that cannot be read is an
    Item that fails.
    """
    include = (*options.include, *location.include)
    start = _Directory(location.path, "", frozenset())
    pending = [_entries(start, location, options, include, builder)]  # one iterator for each level of the walk
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
        elif isinstance(entry, _Directory):
            pending.append(_entries(entry, location, options, include, builder))
        else:
            yield entry


def _entries(
    directory: _Directory, location: Location, options: ReaderOptions, include: tuple[str, ...], builder: ItemBuilder
) -> Iterator[Item | _Directory]:
    """Yield the Items of one directory, and the directories in it, in their order."""
    shown = os.path.join(location.name, directory.inside)
    try:
        status = os.stat(directory.path)
        identity = (status.st_dev, status.st_ino)
        if identity in directory.ancestors:
            return
        caption_files, entries = _scan(directory, options, include)
        if options.caption_root is not None:
            caption_files = _caption_files_under(options.caption_root, options.caption_suffixes, location, directory)
    except OSError as error:
        key = safe_key(location.prefix + directory.inside + "-")
        yield builder.build_failure(key, shown, f"the directory cannot be read: {error.strerror or error}")
        return
    repeated = _repeated_names(entries)
    for entry in entries:
        name = os.fsdecode(entry.removesuffix(_DIRECTORY))
        path = os.path.join(directory.path, name)
        shown_path = os.path.join(shown, name)
        if entry.endswith(_DIRECTORY):
            yield _Directory(path, f"{directory.inside}{name}/", directory.ancestors | {identity})
        elif is_media(name):
            if builder.is_new_file(path):
                key, full_key = key_pair(location.prefix + directory.inside + name)
                yield builder.build(
                    full_key if fold(without_suffix(name)) in repeated else key,
                    shown_path,
                    file_locator(path, options),
                    full_key=full_key,
                    directory=directory.path,
                    caption_files=caption_files,
                )
        else:
            kind = kind_of_file(name)
            if kind is not None:
                inner = Location(kind, path, shown_path, location.prefix + directory.inside)
                yield from list_location(inner, options, builder)


def _scan(
    directory: _Directory, options: ReaderOptions, include: tuple[str, ...]
) -> tuple[Collection[str], list[bytes]]:
    """Return the names of a directory's caption files, and its sorted entries to list, as bytes to save memory."""
    caption_files: set[str] = set()
    entries: list[bytes] = []
    with os.scandir(directory.path) as scanned:
        for entry in scanned:
            if entry.name.endswith(options.caption_suffixes):
                caption_files.add(entry.name)
            if (entry.name.startswith(".") and not options.hidden) or entry.name.endswith(STATE_SUFFIX):
                continue
            inside = directory.inside + entry.name
            if any(matches(inside, pattern) for pattern in options.exclude):
                continue
            is_wanted = any(matches(inside, pattern) for pattern in include) if include else is_media(entry.name)
            kind = _entry_kind(entry)
            if kind == "directory" or (kind == "file" and is_wanted):
                entries.append(os.fsencode(entry.name) + (_DIRECTORY if kind == "directory" else b""))
    entries.sort()
    return caption_files, entries


def _repeated_names(entries: Sequence[bytes]) -> Collection[str]:
    """Return the folded names, with and without extension, that several files of a directory share.

    To save memory, names are first counted by hash in a byte table; only names in a bucket with more than one are
    then counted as text.
    """

    def folded_names() -> Iterator[str]:
        for entry in entries:
            if not entry.endswith(_DIRECTORY):
                name = os.fsdecode(entry)
                yield fold(name)
                yield fold(without_suffix(name))

    buckets = bytearray(_BUCKETS_PER_FILE * len(entries))
    for text in folded_names():
        bucket = hash(text) % len(buckets)
        buckets[bucket] = min(buckets[bucket] + 1, 2)
    counts = Counter(text for text in folded_names() if buckets[hash(text) % len(buckets)] > 1)
    return {text for text, count in counts.items() if count > 1}


def _entry_kind(entry: os.DirEntry[str]) -> str:
    """Return "directory", "file" or "other". A broken link is a file: reading it fails, and the user learns of it."""
    try:
        if entry.is_dir():
            return "directory"
        return "file" if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry)) else "other"
    except OSError:  # a link to itself
        return "file"


def _caption_files_under(
    root: str, suffixes: tuple[str, ...], location: Location, directory: _Directory
) -> Collection[str]:
    """Return the names of the caption files in the directory under `root` that corresponds to this one."""
    inside = location.prefix + directory.inside
    try:
        with os.scandir(os.path.join(root, safe_key(inside)) if inside else root) as scanned:
            return {entry.name for entry in scanned if entry.name.endswith(suffixes)}
    except (FileNotFoundError, NotADirectoryError):
        return ()
