"""The kinds of sources: what they are called, what their files' names end in, and who lists them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from importlib import import_module

from ..state.atomic_files import PARTIAL_SUFFIX
from .base import STATE_SUFFIX, Found, InputError, Place, ReaderOptions, is_media

_HERE = __name__.rpartition(".")[0]
# Name -> "module:function"; the function takes a Place and ReaderOptions and yields what it finds.
KINDS = {
    "folder": f"{_HERE}.folder:folder",
    "file": f"{_HERE}.folder:single_file",
    "list": f"{_HERE}.list_file:list_file",
    "json": f"{_HERE}.json_table:json_table",
    "jsonl": f"{_HERE}.json_table:jsonl_table",
    "csv": f"{_HERE}.csv_table:csv_table",
    "tsv": f"{_HERE}.csv_table:tsv_table",
    "parquet": f"{_HERE}.parquet_table:parquet_table",
    "arrow": f"{_HERE}.arrow_table:arrow_table",
    "huggingface": f"{_HERE}.arrow_table:huggingface_directory",
    "tar": f"{_HERE}.tar_shard:tar_shard",
    "shards": f"{_HERE}.folder:shards",
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
}
SHARDS = ("tar", "parquet")  # a folder of nothing but these is one data set


def suffix_of(name: str) -> str:
    """Return what of a name tells its kind, in lower case: ".jpg", ".tar.gz"."""
    lower = os.path.basename(name).lower()
    return next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), os.path.splitext(lower)[1])


def kind_of_file(name: str) -> str | None:
    """Return the kind that a file's name tells; None where it tells none."""
    return "file" if is_media(name) else SUFFIXES.get(suffix_of(name))


def kind_of(path: str, ignored: Collection[str] = ()) -> str:
    """Return the kind of what is at a path.

    Args:
        path: a file or a directory.
        ignored: absolute paths that do not count in a directory, nor the directories that they are in.

    Raises:
        InputError: there is nothing, or nothing of a known kind.
    """
    if not os.path.exists(path):
        raise InputError(f"{path}: there is no such file or directory (looked in {os.getcwd()}); check the path")
    if os.path.isdir(path):
        return _kind_of_directory(path, ignored)
    kind = kind_of_file(path)
    if kind is None:
        raise InputError(
            f"{path}: its name does not tell what it is; expected a picture, a video, a folder, or a file that ends in "
            f"{', '.join(SUFFIXES)}; say so by the option 'kind': {', '.join(KINDS)}"
        )
    return kind


def found_in(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield what a source holds.

    Raises:
        InputError: it cannot be listed at all.
        ImportError: a package that its kind needs is not installed; the message says which.
    """
    module, _, attribute = KINDS[place.kind].partition(":")
    function: Callable[[Place, ReaderOptions], Iterator[Found]] = getattr(import_module(module), attribute)
    return function(place, options)


def _kind_of_directory(path: str, ignored: Collection[str]) -> str:
    names = set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.endswith((STATE_SUFFIX, PARTIAL_SUFFIX)):
                    continue
                here = os.path.abspath(entry.path) + os.sep
                if any(f"{one}{os.sep}".startswith(here) for one in ignored):
                    continue
                if is_media(entry.name) or entry.is_dir():
                    names.add("folder")
                else:
                    names.add(entry.name if entry.name in _HUGGING_FACE else SUFFIXES.get(suffix_of(entry.name), ""))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    if any(one <= names for one in ({"dataset_dict.json"}, {"dataset_info.json", "state.json"})):
        return "huggingface"
    return "shards" if "folder" not in names and names.intersection(SHARDS) else "folder"


_HUGGING_FACE = ("dataset_dict.json", "dataset_info.json", "state.json")
