"""Folders: the images and videos in a folder and its subfolders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..state.keys import fold, key_pair, safe_key, without_suffix
from ..state.records import Item
from .base import Location, ReaderOptions, SkippedTableError, file_locator
from .directory_scan import DIRECTORY, DirectoryScan, media_names
from .folder_metadata import read_metadata
from .formats import METADATA_FILES, kind_of_file, list_location
from .item_builder import ItemBuilder

MAX_LINKS = 100  # that are followed to the same directory
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
    directory = os.path.dirname(location.path)
    if builder.is_new_directory(directory):
        shown = os.path.dirname(location.name)
        present = [name for name in METADATA_FILES if os.path.exists(os.path.join(directory, name))]
        names = [name for name in present if os.path.isfile(os.path.join(directory, name))]
        for name in present:
            if name not in names and not os.path.isdir(os.path.join(directory, name)):
                builder.skipped.note("special", os.path.join(shown, name))
        read_metadata(directory, names, shown, options, builder)
    if builder.is_new_file(location.path):
        keys = key_pair(location.prefix + os.path.basename(location.path))
        yield _file_item(location.path, location.name, keys, options, builder)


def _file_item(
    path: str,
    shown_path: str,
    keys: tuple[str, str],
    options: ReaderOptions,
    builder: ItemBuilder,
    caption_files: Mapping[str, str] | None = None,
) -> Item:
    """Return the Item of an image or video, with what metadata says about it.

    Args:
        path, shown_path: its absolute path, and its path as the caller wrote it.
        keys: without and with the extension.
        options, builder: of the listing.
        caption_files: as in `ItemBuilder.build`.
    """
    described = builder.file_columns.get(path)
    return builder.build(
        keys[0],
        shown_path,
        file_locator(path, options),
        full_key=keys[1],
        columns=described.columns,
        directory=os.path.dirname(path),
        caption_files=caption_files,
        described_as=described.caption,
    )


def shards(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the contents of a folder that contains only archives and tables; unlike in other folders, tables may name
    files."""
    yield from folder(location, options, builder)


def folder(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the contents of a folder sorted by name; memory holds the names of one directory per level.

    These are the images and videos, those in archives and in tables that contain the images themselves, and the data
    sets that `datasets` saved. Links are followed, also out of the folder, except back to a directory that the walk is
    inside of, and more than MAX_LINKS times to the same directory: links between a few directories can make billions of
    paths. A directory
    that cannot be read is an Item that fails. What is skipped is counted in `builder.skipped`.
    """
    include = (*options.include, *location.include)
    start, links = _Directory(location.path, "", frozenset()), Counter[tuple[int, int]]()
    pending = [_entries(start, location, options, include, builder, links)]  # one iterator for each level of the walk
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
        elif isinstance(entry, _Directory):
            pending.append(_entries(entry, location, options, include, builder, links))
        else:
            yield entry


def _entries(
    directory: _Directory,
    location: Location,
    options: ReaderOptions,
    include: tuple[str, ...],
    builder: ItemBuilder,
    links: Counter[tuple[int, int]],
) -> Iterator[Item | _Directory]:
    """Yield the Items of one directory, and the directories in it, in their order.

    `links` counts the links that were followed to each directory.
    """
    shown = os.path.join(location.name, directory.inside)
    try:
        status = os.stat(directory.path)
        identity = (status.st_dev, status.st_ino)
        if identity in directory.ancestors:
            return
        if os.path.islink(directory.path):
            links[identity] += 1
            if links[identity] > MAX_LINKS:
                raise OSError(f"more than {MAX_LINKS} links lead to it")
        scan = DirectoryScan(directory.path, directory.inside, options, include)
        caption_files = scan.caption_files
        if options.caption_root is not None:
            caption_files = _caption_files_under(options.caption_root, options.caption_suffixes, location, directory)
    except OSError as error:
        key = safe_key(location.prefix + directory.inside + "-")
        yield builder.build_failure(key, shown, f"the directory cannot be read: {error.strerror or error}")
        return
    if scan.is_huggingface and directory.inside and not include:
        above = location.prefix + "".join(directory.inside.rstrip("/").rpartition("/")[:2])
        inner = Location("huggingface", directory.path, shown.rstrip(os.sep), above, downloads=False, paths=False)
        yield from _contents(inner, options, builder)
        return
    if scan.metadata and builder.is_new_directory(directory.path):
        scan.set_used_metadata(read_metadata(directory.path, scan.metadata, shown, options, builder))
    repeated = _repeated_names(scan.entries)
    first_only, seen = options.same_name == "first", set[str]()
    scan.note_skipped(builder.skipped, shown, () if first_only else repeated, options.caption_root is None)
    for entry in scan.entries:
        name = os.fsdecode(entry.removesuffix(DIRECTORY))
        path = os.path.join(directory.path, name)
        shown_path = os.path.join(shown, name)
        kind = kind_of_file(name)
        if entry.endswith(DIRECTORY):
            yield _Directory(path, f"{directory.inside}{name}/", directory.ancestors | {identity})
        elif kind in (None, "file"):
            stem = fold(without_suffix(name))
            if stem in repeated and not _is_listed_of_several(stem, shown_path, seen, options, builder):
                continue
            if builder.is_new_file(path):
                key, full_key = key_pair(location.prefix + directory.inside + name)
                own_key = full_key if stem in repeated and not first_only else key
                yield _file_item(path, shown_path, (own_key, full_key), options, builder, caption_files)
        else:
            inner = Location(kind, path, shown_path, location.prefix + directory.inside)
            if not scan.is_requested(name):
                inner = replace(inner, downloads=False, paths=location.kind == "shards")
            yield from _contents(inner, options, builder)


def _is_listed_of_several(
    stem: str, shown_path: str, seen: set[str], options: ReaderOptions, builder: ItemBuilder
) -> bool:
    """Return whether an image is listed that has the same name as others in other formats, and count what is unusual.

    Args:
        stem: its folded name without extension.
        shown_path: its path as the caller wrote it.
        seen: the stems of earlier images of its directory; `stem` is added.
        options, builder: of the listing.
    """
    is_first = stem not in seen
    seen.add(stem)
    if options.same_name == "first":
        if not is_first:
            builder.skipped.note("same_name", shown_path)
        return is_first
    if options.separate_files or options.caption_root is not None:
        builder.skipped.note("full_name", shown_path)
    return True


def _contents(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the Items of an archive or a table in a folder."""
    if location.downloads:  # requested by name: errors are the caller's
        yield from list_location(location, options, builder)
        return
    if options.separate_files and not location.paths:
        builder.skipped.note("inside", location.name)
        return
    try:
        yield from list_location(location, options, builder)
    except SkippedTableError as error:
        builder.skipped.note(error.reason, location.name)
    except ImportError:
        builder.skipped.note("pyarrow", location.name)


def _repeated_names(entries: Sequence[bytes]) -> Collection[str]:
    """Return the folded names, with and without extension, that several files of a directory share.

    To save memory, names are first counted by hash in a byte table; only names in a bucket with more than one are
    then counted as text.
    """

    def folded_names() -> Iterator[str]:
        for name in media_names(entries):
            yield fold(name)
            yield fold(without_suffix(name))

    buckets = bytearray(_BUCKETS_PER_FILE * len(entries))
    for text in folded_names():
        bucket = hash(text) % len(buckets)
        buckets[bucket] = min(buckets[bucket] + 1, 2)
    counts = Counter(text for text in folded_names() if buckets[hash(text) % len(buckets)] > 1)
    return {text for text, count in counts.items() if count > 1}


def _caption_files_under(
    root: str, suffixes: tuple[str, ...], location: Location, directory: _Directory
) -> dict[str, str]:
    """Return the caption files in the directory under `root` that corresponds to this one, by folded name."""
    inside = location.prefix + directory.inside
    folded = tuple(suffix.lower() for suffix in suffixes)
    try:
        with os.scandir(os.path.join(root, safe_key(inside)) if inside else root) as scanned:
            names = sorted((entry.name for entry in scanned if entry.name.lower().endswith(folded)), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {fold(name): name for name in names}
