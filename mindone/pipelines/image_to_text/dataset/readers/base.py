"""What every source works with: its options, what it finds, and the errors it may raise."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mindone.models.share4v.processing.image_loading import IMAGE_SUFFIXES

from ...video import VIDEO_SUFFIXES
from ..state.keys import path_keys, url_keys

STATE_SUFFIX = ".share4v"  # what the name of a job's own directory ends in


class InputError(ValueError):
    """The inputs cannot be listed: what was named is not there, or says nothing about pictures."""


class ItemError(ValueError):
    """One input cannot be read; the message says why, without its name."""


@dataclass(frozen=True)
class ReaderOptions:
    """How inputs are listed.

    Attributes:
        kind: what the inputs are, where their names do not tell; see KINDS.
        include: patterns of the files of a folder; by default all pictures and videos. `*` stops at a `/`, `**` does
            not; a pattern without a `/` is for the name alone.
        exclude: patterns of files and directories to leave out.
        hidden: whether names that begin with a dot count.
        image_root: where relative paths of lists and tables begin; by default at the list or table.
        image_column, caption_column, key_column: of tables; by default the first two are guessed.
        caption_root: where existing captions are, by keys; by default beside the pictures.
        caption_suffixes: of files with captions, the first one first.
        frames: how many frames of a video are looked at.
        frame_mode: how they are chosen and arranged: "middle", "even" or "grid".
        ignored: absolute paths that say nothing about what a folder is: an output in it.
    """

    kind: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    hidden: bool = False
    image_root: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    key_column: str | None = None
    caption_root: str | None = None
    caption_suffixes: tuple[str, ...] = (".txt", ".caption")
    frames: int | None = None
    frame_mode: str = "middle"
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a source begins.

    Attributes:
        kind: of KINDS.
        path: absolute.
        name: the same as the caller wrote it.
        prefix: in front of keys, "" or "photos/".
        include: patterns that the caller wrote in place of a path.
        stem: in front of the numbers of a table's rows in keys; by default its file's name.
    """

    kind: str
    path: str
    name: str
    prefix: str = ""
    include: tuple[str, ...] = ()
    stem: str = ""


@dataclass(frozen=True)
class Found:
    """An input as its source found it, before it has a number and a key that no other has.

    Attributes:
        key, full_key: without and with its extension.
        source, locator, columns, caption: as an Item has them.
        beside: the directory that holds its file, if it has one of its own.
        names: of the captions in the directory where its own would be, where they are known.
        once: whether the same file, found again, is the same input.
    """

    key: str
    full_key: str
    source: str
    locator: Mapping[str, Any]
    columns: Mapping[str, Any] = field(default_factory=dict)
    caption: str | None = None
    beside: str | None = None
    names: Collection[str] | None = None
    once: bool = False


def failure(key: str, source: str, reason: str, columns: Mapping[str, Any] | None = None) -> Found:
    """Return an input that is known to be there and cannot be read."""
    return Found(key, key, source, {"kind": "failure", "error": reason}, columns or {})


def locate_file(path: str, options: ReaderOptions) -> dict[str, Any]:
    """Return the locator of a picture's or a video's file."""
    if os.path.splitext(path)[1].lower() not in VIDEO_SUFFIXES:
        return {"kind": "file", "path": path}
    return {"kind": "video", "path": path, "mode": options.frame_mode, "frames": options.frames}


def is_media(name: str) -> bool:
    """Tell by its name whether a file is a picture or a video."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES


def listed_file(text: str, base: str, shown_base: str, options: ReaderOptions, columns: Mapping[str, Any]) -> Found:
    """Return what a list or a table names by a path or an address.

    Args:
        text: the path, absolute or relative to `base`, or a URL.
        base: absolute directory.
        shown_base: the same as the caller wrote it.
        options: of the source.
        columns: the other columns of its row.
    """
    if text[:8].lower().startswith(("http://", "https://")):
        key, full_key = url_keys(text)
        return Found(key, full_key, text, {"kind": "url", "url": text}, columns)
    if text[:7].lower() == "file://":
        text = url2pathname(urlsplit(text).path)
    path = os.path.normpath(os.path.join(base, text))
    key, full_key = path_keys(path, base)
    if "\0" in path:
        return failure(key, text, "the path has a null character in it", columns)
    shown = os.path.normpath(os.path.join(shown_base, text))
    return Found(key, full_key, shown, locate_file(path, options), columns, beside=os.path.dirname(path))
