"""Metadata files in an archive, `metadata.jsonl`, `.csv` or `.parquet`: joined to its images as those of a folder are.

`datasets` reads such archives too (load_dataset("imagefolder", data_files="train.zip")).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from tempfile import TemporaryDirectory

from ..state.regular_files import create_own
from .base import Location, ReaderOptions
from .folder_metadata import is_joined
from .formats import METADATA_FILES, kind_of_file
from .item_builder import ItemBuilder

# Of the metadata files of an archive, each of which is unpacked to a temporary file; further ones are not read.
MAX_METADATA_BYTES, MAX_METADATA_FILES = 2**27, 1000


def is_metadata(name: str) -> bool:
    """Return whether a member's name is that of a metadata file."""
    return posixpath.basename(name) in METADATA_FILES


def described_as(location: Location, name: str) -> str:
    """Return the path under which `ItemBuilder.file_columns` has what metadata says about a member of an archive."""
    return f"{location.path}::{name}"


def join_member(
    name: str,
    data: bytes,
    location: Location,
    options: ReaderOptions,
    builder: ItemBuilder,
    has_member: Callable[[str], bool],
) -> bool:
    """Read a metadata file of an archive into `builder.file_columns`, and return whether it describes images.

    Rows that name no member of the archive are counted as skipped, as `folder_metadata.read_metadata` does.

    Args:
        name, data: of the member.
        location: of the archive.
        options, builder: of the listing.
        has_member: whether the archive has a member of a name.

    Raises:
        InputError: options.caption_column is not a column of the metadata.
    """
    base, directory = posixpath.basename(name), posixpath.dirname(name)
    with TemporaryDirectory(prefix="share4v-") as folder:
        path = os.path.join(os.path.realpath(folder), base)
        with create_own(path) as file:
            file.write(data)

        def member_of(row_path: str) -> str | None:
            relative = os.path.relpath(row_path, os.path.dirname(path)).replace(os.sep, "/")
            member = posixpath.join(directory, relative)
            return described_as(location, member) if has_member(member) else None

        place = Location(kind_of_file(base) or "", path, f"{location.name}::{name}")
        return is_joined(place, options, builder, member_of, described_as(location, name))
