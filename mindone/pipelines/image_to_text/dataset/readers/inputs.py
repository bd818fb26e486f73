"""list_inputs: from what the caller named to numbered Items with keys of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..state.existing_captions import read_caption
from ..state.keys import KeyRegistry, fold, safe_key
from ..state.records import Item
from .base import Found, InputError, Place, ReaderOptions
from .kinds import KINDS, found_in, kind_of
from .patterns import expand_braces, split_pattern


def list_inputs(inputs: Sequence[str], options: ReaderOptions | None = None) -> Iterator[Item]:
    """List inputs as Items, in an order that depends on nothing but them; memory does not grow with their number.

    Inputs are folders, pictures, videos, list files (.txt, .lst), tables (.json, .jsonl, .csv, .tsv, .parquet, .arrow),
    tar shards, directories that `datasets` saved, and patterns of their names ("photos/**/*.jpg",
    "shard-{0000..0012}.tar"). A row or a file that cannot be read is an Item too: reading it says why.

    Args:
        inputs: what to list; sources come in this order.
        options: how; by default everything is guessed from names.

    Raises:
        InputError: at once where an input is not there or of no known kind; while listing where a table has no column
            with pictures, or is no table at all.
        ImportError: while listing: a package that a kind needs is not installed.

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
        raise InputError(f"a source of kind {options.kind!r} is not known: expected one of {', '.join(KINDS)}")
    if options.caption_root is not None:
        options = replace(options, caption_root=os.path.abspath(options.caption_root))
    if options.image_root is not None and not os.path.isdir(options.image_root):
        raise InputError(f"image_root {options.image_root!r} is no directory; check the path")
    places = [place for one in inputs for place in _places(os.fspath(one), options)]
    return _items(_with_prefixes(places), options)


def _places(text: str, options: ReaderOptions) -> Iterator[Place]:
    if not text or "\0" in text:
        raise InputError(f"{text!r} is no path; name a file or a folder")
    if os.path.lexists(text):
        yield _place(text, options)
        return
    expanded = expand_braces(text)
    for one in expanded:
        base, pattern = split_pattern(one)
        if pattern and not os.path.lexists(one):
            if not os.path.isdir(base):
                raise InputError(f"{text}: there is no directory {base!r} (looked in {os.getcwd()}); check the path")
            yield Place("folder", os.path.abspath(base), base, include=(pattern,))
        else:
            yield _place(one, options)


def _place(name: str, options: ReaderOptions) -> Place:
    kind = options.kind if options.kind and os.path.exists(name) else kind_of(name, options.ignored)
    return Place(kind, os.path.abspath(name), name)


def _with_prefixes(places: Sequence[Place]) -> Iterator[Place]:
    """Put a folder's name in front of its keys where there are several inputs, and a number behind an equal one."""
    taken: dict[str, int] = {}
    for place in places:
        prefix = ""
        if len(places) > 1 and place.kind in ("folder", "shards"):
            name = safe_key(os.path.basename(place.path))
            taken[fold(name)] = taken.get(fold(name), 0) + 1
            prefix = f"{name}/" if taken[fold(name)] == 1 else f"{name}~{taken[fold(name)]}/"
        yield replace(place, prefix=prefix)


def _items(places: Iterator[Place], options: ReaderOptions) -> Iterator[Item]:
    registry = KeyRegistry()
    try:
        number = 0
        for place in places:
            for found in found_in(place, options):
                if found.once and not registry.claim_name(found.locator["path"]):
                    continue
                key = registry.claim(found.key, found.full_key, found.beside)
                yield _item(number, key, found, options)
                number += 1
    finally:
        registry.close()


def _item(number: int, key: str, found: Found, options: ReaderOptions) -> Item:
    caption, locator = (found.caption or "").strip() or None, found.locator
    try:
        caption = caption or _caption(key, found, options)
    except OSError as error:  # nothing must be written over what could not be read
        locator = {"kind": "failure", "error": f"its existing caption cannot be read: {error.strerror or error}"}
    return Item(number, key, found.source, locator, found.columns, caption)


def _caption(key: str, found: Found, options: ReaderOptions) -> str | None:
    """Return the existing caption in a file of the key's name, where the sidecars would be written."""
    folder, _, name = key.rpartition("/")
    directory = found.beside if options.caption_root is None else os.path.join(options.caption_root, folder)
    if directory is None:
        return None
    for suffix in options.caption_suffixes:
        if found.names is None or name + suffix in found.names:
            caption = read_caption(os.path.join(directory, name + suffix))
            if caption is not None:
                return caption
    return None
