"""list_inputs: from the paths that the caller names to numbered Items with unique keys."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mindone.models.share4v.display import looked_in
from mindone.models.share4v.suggestions import unknown

from ..state.keys import fold, safe_key, without_suffix
from ..state.records import Item
from ..state.skipped import SkippedFiles
from .base import InputError, Location, ReaderOptions, is_media
from .folder_metadata import has_file_names
from .formats import KINDS, METADATA_FILES, kind_of, list_location
from .item_builder import ItemBuilder
from .patterns import expand_braces, split_pattern
from .reader import reopen_files
from .text_encoding import check_encoding

SAME_NAME = ("extension", "first")


def list_inputs(
    inputs: Sequence[str], options: ReaderOptions | None = None, skipped: SkippedFiles | None = None
) -> Iterator[Item]:
    """List inputs as Items, in an order that depends on the inputs only; memory does not grow with their number.

    Inputs are folders, images, videos, list files (.txt, .lst), tables (.json, .jsonl, .csv, .tsv, .parquet, .arrow),
    archives (.tar, .zip), directories written by `datasets`, and patterns of their names ("photos/**/*.jpg",
    "shard-{0000..0012}.tar"). A row or file that cannot be read is an Item too: reading it raises the reason.

    Args:
        inputs: paths and patterns to list, in this order.
        options: how to list them; by default everything is guessed from names.
        skipped: counts what is not listed, while it is listed.

    Raises:
        InputError: immediately, if an input does not exist or is of an unknown kind; while listing, if a table has no
            column of images or a file is not a table.
        ImportError: while listing, if a package that a kind needs is not installed.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers import list_inputs
        >>> for item in list_inputs(["photos"]):  # doctest: +SKIP
        ...     print(item.number, item.key, item.source)
        0 cats/001 photos/cats/001.jpg
    """
    options = ReaderOptions() if options is None else options
    if isinstance(inputs, (str, bytes)) or not inputs:
        raise InputError(f"inputs is {inputs!r}: expected a list of paths")
    if options.kind is not None and options.kind not in KINDS:
        raise InputError(f"unknown kind of input {options.kind!r}: expected one of {', '.join(KINDS)}")
    if options.same_name not in SAME_NAME:
        raise InputError(unknown("value of same_name", options.same_name, SAME_NAME))
    if options.encoding is not None:
        check_encoding(options.encoding)
    if options.caption_root is not None:
        options = replace(options, caption_root=os.path.abspath(options.caption_root))
    if options.image_root is not None and not os.path.isdir(options.image_root):
        raise InputError(f"image_root {options.image_root!r} is not a directory; check the path")
    reopen_files()
    paths = _without_captions([os.fspath(path) for path in inputs], options, skipped)
    locations = [location for path in paths for location in _locations(path, options)]
    return _items(_with_prefixes(locations), options, skipped)


def _items(locations: Iterator[Location], options: ReaderOptions, skipped: SkippedFiles | None) -> Iterator[Item]:
    with ItemBuilder(options, skipped) as builder:
        for location in locations:
            yield from list_location(location, options, builder)


def _without_captions(paths: list[str], options: ReaderOptions, skipped: SkippedFiles | None) -> list[str]:
    """Return the inputs without the caption files and metadata of others: a shell's `photos/*` names 1.txt beside 1.jpg
    too. Metadata is read when its images are listed."""
    if options.kind is not None:
        return paths
    media = {name for path in paths if is_media(path) for name in (path, without_suffix(path))}
    directories = {os.path.dirname(path) for path in paths if is_media(path)}
    companions = (*options.caption_suffixes, ".json")
    inputs = []
    for path in paths:
        directory, name = os.path.split(path)
        is_metadata = name in METADATA_FILES and directory in directories and os.path.lexists(path)
        is_metadata = is_metadata and has_file_names(_location(path, options), options)
        if not is_metadata and not (path.endswith(companions) and without_suffix(path) in media):
            inputs.append(path)
        elif skipped is not None:
            skipped.note("beside", path)
    return inputs


def _locations(text: str, options: ReaderOptions) -> Iterator[Location]:
    """Yield the locations that a path or pattern stands for."""
    if not text or "\0" in text:
        raise InputError(f"{text!r} is not a path; name a file or a folder")
    if os.path.lexists(text):  # an existing file may have pattern characters in its name
        yield _location(text, options)
        return
    for path in expand_braces(text):
        base, pattern = split_pattern(path)
        if pattern and not os.path.lexists(path):
            if not os.path.isdir(base):
                raise InputError(f"{text}: there is no directory {base!r}{looked_in(base)}; check the path")
            yield Location("folder", os.path.abspath(base), base, include=(pattern,))
        else:
            yield _location(path, options)


def _location(name: str, options: ReaderOptions) -> Location:
    kind = options.kind if options.kind and os.path.exists(name) else kind_of(name, options.ignored)
    return Location(kind, os.path.abspath(name), name)


def _with_prefixes(locations: Sequence[Location]) -> Iterator[Location]:
    """If there are several inputs, prefix the keys of each folder with its name, numbered if the name is not unique."""
    counts: dict[str, int] = {}
    for location in locations:
        prefix = ""
        if len(locations) > 1 and location.kind in ("folder", "shards"):
            name = safe_key(os.path.basename(location.path))
            counts[fold(name)] = count = counts.get(fold(name), 0) + 1
            prefix = f"{name}/" if count == 1 else f"{name}~{count}/"
        yield replace(location, prefix=prefix)
