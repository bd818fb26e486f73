"""One directory of a folder: which entries are inputs, which are caption files, and why the others are skipped."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ..state.atomic_files import PARTIAL_SUFFIX
from ..state.keys import fold, without_suffix
from ..state.paths import PROGRESS, STATE_SUFFIX
from ..state.regular_files import open_own
from ..state.skipped import SkippedFiles
from .base import ReaderOptions, is_media
from .formats import CONTAINERS, HUGGING_FACE_FILES, METADATA_FILES, TABLES, is_huggingface, kind_of_file
from .patterns import matches
from .unlisted import begins_like_an_image, differs_in_case, names_a_suffix, why_never, why_not_media

DIRECTORY = b"\0"  # appended to directory names: no file name contains it, and it does not change the sort order
# Files that belong to the image of the same name: what img2dataset, darktable and trainers write beside it.
_COMPANIONS = (".json", ".xmp", ".npz")
_STATS = "_stats"  # img2dataset writes 00000_stats.json for 00000.tar
_MAX_PROGRESS_BYTES = 2**24


class DirectoryScan:
    """The entries of one directory, read once.

    Args:
        path: absolute path of the directory.
        inside: its path relative to the start of the walk, "" or for example "cats/".
        options: how the folder is listed.
        include: patterns of the files to list; by default all images, videos, archives, and tables with images in them.

    Raises:
        OSError: the directory cannot be read.

    Attributes:
        entries: the names to list and the directories to enter, sorted, as bytes to save memory; those of directories
            end with DIRECTORY.
        caption_files: folded name -> name of each caption file.
        metadata: the names of tables that may describe the images, which are METADATA_FILES.
        is_huggingface: whether `datasets` wrote the directory.
    """

    def __init__(self, path: str, inside: str, options: ReaderOptions, include: Sequence[str]) -> None:
        self.path, self.inside = path, inside
        self._options, self._include = options, include
        self.entries: list[bytes] = []
        self.caption_files: dict[str, str] = {}
        self.metadata: list[str] = []
        self._doubles: dict[str, list[str]] = {}  # folded name -> names of caption files, if there are several
        self._companions: dict[str, str] = {}
        self._others: list[tuple[str, str]] = []  # reason and name of what is skipped
        special, states = set(), set()
        suffixes = tuple(suffix.lower() for suffix in options.caption_suffixes)
        with os.scandir(path) as scanned:
            for entry in scanned:
                lower = entry.name.lower()
                if lower.endswith(suffixes):
                    self._add_caption(entry.name)
                if entry.name in HUGGING_FACE_FILES:
                    special.add(entry.name)
                if entry.name.endswith(STATE_SUFFIX):
                    states.add(entry.name)
                elif not lower.endswith(suffixes) or include:
                    self._add(entry)
        self.is_huggingface = is_huggingface(special)
        self._remove_outputs(states)
        if not include:
            self._remove_described()
        self.entries.sort()

    def is_requested(self, name: str) -> bool:
        """Return whether a pattern names the extension of a file, so that it is listed whatever it is."""
        return any(names_a_suffix(pattern) and matches(self.inside + name, pattern) for pattern in self._include)

    def set_used_metadata(self, used: str | None) -> None:
        """Tell which of `metadata` was read, if any: it is not listed, and the others are, or are skipped."""
        if used is not None:
            self.entries = [entry for entry in self.entries if entry != os.fsencode(used)]
        for name in self.metadata:
            if name != used and kind_of_file(name) not in CONTAINERS:
                self._skip("table", name)

    def note_skipped(self, skipped: SkippedFiles, shown: str, repeated: Collection[str], reads_captions: bool) -> None:
        """Count what was skipped.

        Args:
            skipped: where it is counted.
            shown: the directory as the caller wrote it.
            repeated: folded names without extension that several images have; their caption files have full names.
            reads_captions: whether the caption files in this directory are read; otherwise they are under another root.
        """
        others = [*self._others]
        if not self._include and not self._is_output():
            others += self._unused(repeated, reads_captions)
        for reason, name in sorted(others, key=lambda one: os.fsencode(one[1])):
            skipped.note(reason, os.path.join(shown, name))

    def _unused(self, repeated: Collection[str], reads_captions: bool) -> list[tuple[str, str]]:
        """Return caption files and companions that no image uses, each with the reason."""
        captions, companions = dict(self.caption_files), dict(self._companions)
        if not captions and not companions:
            return []
        found = []
        for name in media_names(self.entries):
            full, stem = fold(name), fold(without_suffix(name))
            for suffix in _COMPANIONS:
                companions.pop(stem + suffix, None)
                companions.pop(full + suffix, None)
            for suffix in self._options.caption_suffixes:
                for text in self._options.text_names:
                    captions.pop(f"{full if stem in repeated else stem}.{fold(text)}{suffix.lower()}", None)
                caption = captions.pop((full if stem in repeated else stem) + suffix.lower(), None)
                if caption is None:
                    continue
                if not reads_captions:
                    found.append(("other_caption", caption))
                doubles = self._doubles.get(fold(caption), [])
                exact = (name if stem in repeated else without_suffix(name)) + suffix
                used = exact if exact in doubles else caption
                found += [("caption", double) for double in doubles if double != used]
        for folded, name in captions.items():
            found.append(("ambiguous" if without_suffix(folded) in repeated else "caption", name))
        return found + [("table" if kind_of_file(name) in TABLES else "other", name) for name in companions.values()]

    def _add_caption(self, name: str) -> None:
        folded = fold(name)
        other = self.caption_files.setdefault(folded, name)
        if other != name:  # they differ in case or normalization; one with exactly the image's name is preferred
            self._doubles.setdefault(folded, [other]).append(name)
            self.caption_files[folded] = min(self._doubles[folded])

    def _add(self, entry: os.DirEntry[str]) -> None:
        """Add an entry to those that are listed or to those that are skipped."""
        name, inside = entry.name, self.inside + entry.name
        if any(matches(inside, pattern) for pattern in self._options.exclude):
            return
        reason = why_never(name, self._options.hidden)
        if reason is not None and not self._is_named_hidden(inside):
            self._skip(reason, name)
            return
        kind = _entry_kind(entry)
        if kind == "other":
            if not self._include or any(matches(inside, pattern) for pattern in self._include):
                self._others.append(("special", name))
            return
        is_metadata = kind == "file" and name in METADATA_FILES and not self.is_requested(name)
        if is_metadata:
            self.metadata.append(name)
        if kind == "directory":
            self.entries.append(os.fsencode(name) + DIRECTORY)
        elif kind == "file" and self._is_wanted(name, inside):
            self.entries.append(os.fsencode(name))
        elif is_metadata:
            return
        elif kind == "file" and self._include:
            if differs_in_case(inside, self._include):
                self._others.append(("case", name))
        elif kind == "file" and not name.endswith(PARTIAL_SUFFIX):
            if name.lower().endswith(_COMPANIONS) and name not in HUGGING_FACE_FILES:
                self._companions[fold(name)] = name
            else:
                self._skip("table" if kind_of_file(name) in TABLES else why_not_media(name), name)

    def _is_wanted(self, name: str, inside: str) -> bool:
        is_default = is_media(name) or kind_of_file(name) in CONTAINERS
        if not self._include:
            return is_default
        for pattern in self._include:
            if matches(inside, pattern) and (
                is_default
                or names_a_suffix(pattern)
                or (why_not_media(name) == "no_extension" and begins_like_an_image(os.path.join(self.path, name)))
            ):
                return True
        return False

    def _is_named_hidden(self, inside: str) -> bool:
        """Return whether a pattern names files that start with a dot, as in shells."""
        named = (pattern for pattern in self._include if pattern.rpartition("/")[2].startswith("."))
        return any(matches(inside, pattern) for pattern in named)

    def _skip(self, reason: str, name: str) -> None:
        if not self._include:
            self._others.append((reason, name))

    def _is_output(self) -> bool:
        """Return whether the directory is in the job's own output, where caption files belong to the job."""
        path = f"{self.path}{os.sep}"
        return any(path.startswith(f"{ignored}{os.sep}") for ignored in self._options.ignored)

    def _remove_outputs(self, states: set[str]) -> None:
        """Remove archives and tables that captioning jobs wrote: those of this job silently, since they are its own."""
        others = _names_of_outputs(self.path) if STATE_SUFFIX in states else set()
        own = [pattern for folder, pattern in self._options.own_outputs if folder == self.path]
        for name in list(self.metadata):
            is_own = any(fnmatchcase(name, pattern) for pattern in own)
            if is_own or name in others or name + STATE_SUFFIX in states:
                self.metadata.remove(name)
                if not is_own and kind_of_file(name) not in CONTAINERS:
                    self._skip("output", name)
        kept = []
        for entry in self.entries:
            name = os.fsdecode(entry)
            if entry.endswith(DIRECTORY) or kind_of_file(name) not in CONTAINERS or self.is_requested(name):
                kept.append(entry)
            elif any(fnmatchcase(name, pattern) for pattern in own):
                continue
            elif name in others or name + STATE_SUFFIX in states:
                self._skip("output", name)
            else:
                kept.append(entry)
        self.entries = kept

    def _remove_described(self) -> None:
        """Remove tables that describe an archive or a folder of the same name, such as img2dataset's."""
        names = [os.fsdecode(entry.removesuffix(DIRECTORY)) for entry in self.entries]
        is_table = [kind_of_file(name) in TABLES for name in names]
        if not any(is_table) and not self._companions:
            return
        described = {
            fold(_stem(name))
            for name, entry in zip(names, self.entries, strict=True)
            if entry.endswith(DIRECTORY) or kind_of_file(name) in ("tar", "zip")
        }
        with_stats = described | {fold(_stem(name)) for name, table in zip(names, is_table, strict=True) if table}
        for folded, name in list(self._companions.items()):
            stem = fold(_stem(name))
            if stem in described or (stem.endswith(_STATS) and stem.removesuffix(_STATS) in with_stats):
                del self._companions[folded]
                self._others.append(("described", name))
        kept = []
        for name, entry, table in zip(names, self.entries, is_table, strict=True):
            if table and not entry.endswith(DIRECTORY) and fold(_stem(name)) in described:
                self._others.append(("described", name))
            else:
                kept.append(entry)
        self.entries = kept


def media_names(entries: Iterable[bytes]) -> Iterable[str]:
    """Yield the names of the entries that are listed as images or videos."""
    for entry in entries:
        if not entry.endswith(DIRECTORY):
            name = os.fsdecode(entry)
            if is_media(name) or kind_of_file(name) is None:
                yield name


def _stem(name: str) -> str:
    """Return a name up to its extension: "00000" for "00000.tar.gz"."""
    stem = without_suffix(name)
    return without_suffix(stem) if stem.lower().endswith(".tar") else stem


def _names_of_outputs(directory: str) -> set[str]:
    """Return the names of files in a directory that jobs with their state in it wrote."""
    names: set[str] = set()
    with suppress(OSError):
        for path in Path(directory, STATE_SUFFIX).glob(PROGRESS):
            with suppress(OSError, ValueError, RecursionError, TypeError), open_own(path) as file:
                stored = json.loads(file.read(_MAX_PROGRESS_BYTES))
                names.update(name for name in stored.get("names", ()) if isinstance(name, str))
    return names


def _entry_kind(entry: os.DirEntry[str]) -> str:
    """Return "directory", "file" or "other". A broken link is a file: reading it fails, and the user learns of it."""
    try:
        if entry.is_dir():
            return "directory"
        return "file" if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry)) else "other"
    except OSError:  # a link to itself
        return "file"
