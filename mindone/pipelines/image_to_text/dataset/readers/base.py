"""What all readers share: their options, the location of an input, and the errors they raise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any

from mindone.models.share4v.processing.image_loading import IMAGE_SUFFIXES

from ...video import VIDEO_SUFFIXES
from ..state.keys import fold

_MAX_COMPARED = 10_000  # names in a directory that are compared with a missing one


class InputError(ValueError):
    """The inputs cannot be listed: one does not exist, is of an unknown kind, or has no column of images."""


class ItemError(ValueError):
    """One input cannot be read; the message gives the reason without the input's name.

    Attributes:
        download: as of a Record.
    """

    download: Mapping[str, int] = MappingProxyType({})


class SkippedTableError(ValueError):
    """A table that a folder contains is not listed.

    Args:
        reason: a key of `state.skipped.REASONS`.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class ReaderOptions:
    """How inputs are found and listed.

    Attributes:
        kind: kind of the inputs, if their names do not tell it; one of KINDS.
        include: patterns of the files to list in a folder; by default all images, videos and archives, and tables with
            images in them. `*` does not match a `/`, `**` does; a pattern without a `/` is matched against the file
            name only. A pattern that names an extension (`*.jxr`) lists any file; another one (`*`) selects among
            those that are listed by default, and files without an extension that begin as images do.
        exclude: patterns of files and directories to skip.
        hidden: whether to include names that start with a dot.
        image_root: base directory of relative paths in lists and tables; by default the directory of the list or table.
        image_column, caption_column, key_column: columns of tables; by default the first two are guessed.
        caption_root: directory of existing captions, named by key; by default they are beside the images.
        caption_suffixes: suffixes of caption files, in order of preference.
        frames: how many frames to take from a video.
        frame_mode: how frames are chosen and arranged: "middle", "even" or "grid".
        ignored: absolute paths, such as the output's, to ignore when the kind of a folder is determined.
        encoding: encoding of tables and lists; by default UTF-8, or UTF-16 or UTF-32 if their first bytes say so.
        same_name: what to do with images of a folder or an archive that have the same name in different formats, 1.jpg
            and 1.png: "extension" captions all of them, in 1.jpg.txt and 1.png.txt; "first" only the first, in 1.txt.
        own_outputs: directories and name patterns of the files that the job writes, which are no inputs.
        text_names: names of the job's further texts, whose files beside images (a.short.txt) belong to the job.
        separate_files: list only separate files of a folder that has some, since the captions are written beside them.
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
    encoding: str | None = None
    same_name: str = "extension"
    own_outputs: tuple[tuple[str, str], ...] = ()
    separate_files: bool = False
    text_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Location:
    """A file or directory to list.

    Attributes:
        kind: one of KINDS.
        path: absolute path.
        name: the path as the caller wrote it; item sources are built from it.
        prefix: prefix of the keys, "" or for example "photos/".
        include: patterns that the caller wrote as part of the path.
        stem: prefix of the row numbers in the keys of a table; by default the table's file name without suffix.
        downloads: whether URLs in a table may be opened; not if the caller named only a folder that contains the table.
        paths: whether a table may name files; not if it lies in a folder whose files are listed themselves.
    """

    kind: str
    path: str
    name: str
    prefix: str = ""
    include: tuple[str, ...] = ()
    stem: str = ""
    downloads: bool = True
    paths: bool = True


def similar_name(path: str) -> str | None:
    """Return a name in the directory of a missing file that differs only in case or Unicode normalization, or None."""
    directory, name = os.path.split(os.path.abspath(path))
    wanted = fold(name)
    with suppress(OSError), os.scandir(directory) as entries:
        names = (entry.name for entry in islice(entries, _MAX_COMPARED))
        return next((one for one in names if one != name and fold(one) == wanted), None)
    return None


def file_locator(path: str, options: ReaderOptions) -> dict[str, Any]:
    """Return the locator of an image or video file."""
    if os.path.splitext(path)[1].lower() not in VIDEO_SUFFIXES:
        return {"kind": "file", "path": path}
    return {"kind": "video", "path": path, "mode": options.frame_mode, "frames": options.frames}


def is_media(name: str) -> bool:
    """Return whether a file name has the suffix of an image or a video."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES
