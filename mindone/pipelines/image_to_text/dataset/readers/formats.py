"""The kinds of inputs: their names, the file suffixes that tell them, and the functions that list them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from importlib import import_module

from mindone.models.share4v.display import looked_in, shell_name

from ..state.atomic_files import PARTIAL_SUFFIX
from ..state.keys import safe_key
from ..state.paths import STATE_SUFFIX
from ..state.records import Item
from ..state.temp_table import TempTableError
from .base import InputError, Location, ReaderOptions, SkippedTableError, is_media, similar_name
from .item_builder import ItemBuilder
from .text_encoding import LFS_ADVICE, is_lfs_pointer

_PACKAGE = __name__.rpartition(".")[0]
# Name -> "module:function". The function takes a Location, ReaderOptions and an ItemBuilder, and yields Items.
KINDS = {
    "folder": f"{_PACKAGE}.folder:folder",
    "file": f"{_PACKAGE}.folder:single_file",
    "list": f"{_PACKAGE}.list_file:list_file",
    "json": f"{_PACKAGE}.json_table:json_table",
    "jsonl": f"{_PACKAGE}.json_table:jsonl_table",
    "csv": f"{_PACKAGE}.csv_table:csv_table",
    "tsv": f"{_PACKAGE}.csv_table:tsv_table",
    "parquet": f"{_PACKAGE}.parquet_table:parquet_table",
    "arrow": f"{_PACKAGE}.arrow_table:arrow_table",
    "huggingface": f"{_PACKAGE}.arrow_table:huggingface_directory",
    "tar": f"{_PACKAGE}.tar_shard:tar_shard",
    "zip": f"{_PACKAGE}.zip_shard:zip_shard",
    "shards": f"{_PACKAGE}.folder:shards",
}
SUFFIXES = {
    ".txt": "list",
    ".lst": "list",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".tar.bz2": "tar",
    ".tar.xz": "tar",
    ".zip": "zip",
}
SPREADSHEETS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".numbers")
# What a folder contains beside images: it is listed too, if the images are inside.
CONTAINERS = ("tar", "zip", "parquet", "arrow")
# Kinds of tables: one beside an archive or a folder of the same name only describes it.
TABLES = ("list", "json", "jsonl", "csv", "tsv", "parquet", "arrow")
# Tables that describe images in their directory and in those below it, as for `datasets`' imagefolder.
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
HUGGING_FACE_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")


def list_location(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the Items at a location; if it cannot be read from some point on, an Item that fails is the last.

    Raises:
        InputError: it cannot be listed at all.
        ImportError: a package that its kind needs is not installed; the message names it.
        TempTableError: the disk is full.
        SkippedTableError: it is a table that a folder contains, and its images are not in it.
    """
    module, _, attribute = KINDS[location.kind].partition(":")
    function: Callable[[Location, ReaderOptions, ItemBuilder], Iterator[Item]]
    function = getattr(import_module(module), attribute)
    count = 0
    if location.kind in CONTAINERS and is_lfs_pointer(location.path):
        key = safe_key(f"{location.prefix}{os.path.basename(location.path)}~end")
        yield builder.build_failure(key, location.name, LFS_ADVICE)
        return
    try:
        for item in function(location, options, builder):
            yield item
            count += 1
    except (InputError, ImportError, TempTableError, SkippedTableError):
        raise
    except Exception as error:  # a hostile file makes libraries raise almost anything; the other inputs go on
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        key = safe_key(f"{location.prefix}{os.path.basename(location.path)}~end")
        yield builder.build_failure(key, location.name, f"it cannot be read after {count} inputs: {reason}")


def suffix_of(name: str) -> str:
    """Return the part of a file name that tells its kind, in lower case: ".jpg", ".tar.gz"."""
    lower = os.path.basename(name).lower()
    return next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), os.path.splitext(lower)[1])


def kind_of_file(name: str) -> str | None:
    """Return the kind that a file name tells, or None."""
    return "file" if is_media(name) else SUFFIXES.get(suffix_of(name))


def kind_of(path: str, ignored: Collection[str] = ()) -> str:
    """Return the kind of a file or directory.

    Args:
        path: a file or directory.
        ignored: absolute paths that do not count when a directory's kind is determined, nor do the directories that
            contain them.

    Raises:
        InputError: the path does not exist, or its kind is unknown.
    """
    if not os.path.exists(path):
        similar = similar_name(path)
        hint = f"; {shell_name(similar)} exists, which differs only in case or encoding" if similar else ""
        raise InputError(f"{path}: there is no such file or directory{looked_in(path)}{hint}; check the path")
    if os.path.isdir(path):
        return _kind_of_directory(path, ignored)
    kind = kind_of_file(path)
    if suffix_of(path) in SPREADSHEETS:
        raise InputError(
            f"{path} is a spreadsheet, which is not read: save its sheet as CSV (in Excel: CSV UTF-8) and name it"
        )
    if kind is None:
        raise InputError(
            f"{path}: its name does not tell what it is; expected an image, a video, a folder, or a file that ends in "
            f"{', '.join(SUFFIXES)}; otherwise set the option 'kind' to one of {', '.join(KINDS)}"
        )
    return kind


def _kind_of_directory(path: str, ignored: Collection[str]) -> str:
    found = set()  # kinds of the files in it, and the names of the files that `datasets` writes
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.endswith((STATE_SUFFIX, PARTIAL_SUFFIX)):
                    continue
                prefix = os.path.abspath(entry.path) + os.sep
                if any(f"{one}{os.sep}".startswith(prefix) for one in ignored):
                    continue
                if is_media(entry.name) or entry.is_dir():
                    found.add("folder")
                elif entry.name in HUGGING_FACE_FILES:
                    found.add(entry.name)
                else:
                    found.add(SUFFIXES.get(suffix_of(entry.name), ""))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    if is_huggingface(found):
        return "huggingface"
    return "shards" if "folder" not in found and found.intersection(CONTAINERS) else "folder"


def is_huggingface(names: Collection[str]) -> bool:
    """Return whether the names in a directory are those that `save_to_disk` of `datasets` writes."""
    return "dataset_dict.json" in names or ("dataset_info.json" in names and "state.json" in names)
