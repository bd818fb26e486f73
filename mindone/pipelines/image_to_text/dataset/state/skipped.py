"""What the inputs contain that a job does not caption: counted and named, for the summary, the report and messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from mindone.models.share4v.display import shell_name

from .atomic_files import atomic_write
from .regular_files import open_own, own_exists

MAX_NAMES = 20  # names that are kept for each reason
_SHOWN_NAMES, _SHOWN_SUFFIXES = 5, 3
_MAX_BYTES = 2**20  # of the file that stores them

# Reason -> (what was skipped, what to do about it), in the order in which they are shown. {include} stands for the
# patterns that would list the files.
REASONS: dict[str, tuple[str, str]] = {
    "format": (
        "images or videos in formats that are not listed by default",
        "to caption them too, add include (--include) '*' and {include}",
    ),
    "no_extension": (
        "files without an extension",
        "to caption those that are images, add include (--include) '*'",
    ),
    "case": (
        "files that an include pattern matches only if upper and lower case are not distinguished",
        "to caption them too, add {include}",
    ),
    "urls": (
        "tables whose images are URLs",
        "nothing is downloaded unless you request it: pass these tables as inputs to download their images",
    ),
    "inside": (
        "archives or tables beside images, from which no caption can be written beside an image",
        "to caption their images too, add a directory or file as out (--out)",
    ),
    "nested": ("archives or tables inside archives", "unpack the archive to caption their images"),
    "table": ("tables beside images", "to caption what they list, pass them as inputs"),
    "metadata_row": (
        "rows of metadata files beside images that name no image, or one that another row names",
        "",
    ),
    "array": (
        "arrays of images in JSON files, of which one is listed",
        "to caption their images too, store each array in a file of its own",
    ),
    "described": ("tables that describe an archive or a folder of the same name", ""),
    "no_images": (
        "tables in which no column contains images",
        "if one does, pass the table as an input, with image_column (--image-column)",
    ),
    "pyarrow": ("Parquet or Arrow tables, which need pyarrow", "run pip install 'mindone-share4v[dataset]'"),
    "archive": ("archives in formats that are not read", "unpack them, or pack them as .tar or .zip"),
    "output": ("outputs of captioning jobs", "to caption images in them again, pass them as inputs"),
    "link": (
        "links inside archives",
        "pack the archive again with tar --dereference --hard-dereference to include the files",
    ),
    "caption": ("text files that belong to no image", ""),
    "ambiguous": (
        "caption files that belong to several images, which differ only in their extension",
        "rename the images, or add same_name (--same-name) first",
    ),
    "other_caption": (
        "caption files beside images",
        "this job looks for existing captions under out (--out) or caption_root (--caption-root); to use those beside "
        "the images, pass their folder as caption_root (--caption-root)",
    ),
    "same_name": ("images with the same name as an earlier one in another format", ""),
    "full_name": (
        "images whose captions are named 1.jpg.txt and 1.png.txt, since several images have the name 1",
        "LoRA trainers read only 1.txt: rename the images, or add same_name (--same-name) first to caption one of them",
    ),
    "beside": (
        "inputs that were taken for captions or metadata of images among the inputs",
        "to read one as a list or table of images, pass it alone",
    ),
    "special": (
        "pipes, sockets or devices, or links to such",
        "nothing is read from them: store their contents in files",
    ),
    "hidden": ("hidden files or folders", ""),
    "system": ("files that an operating system or program left behind", ""),
    "other": ("other files", ""),
}


NOTES = ("full_name", "beside")  # reasons for which nothing is skipped, but which people should know


@dataclass(frozen=True)
class SkippedGroup:
    """What was skipped for one reason.

    Attributes:
        reason: a key of REASONS.
        count: number of files, members of archives, or folders that were not entered.
        names: the first of them.
    """

    reason: str
    count: int
    names: tuple[str, ...]

    def line(self, with_advice: bool = True) -> str:
        """Return what was skipped as one line of text, with names, and with what to do about it.

        Example:
            >>> from mindone.pipelines.image_to_text.dataset.state.skipped import SkippedGroup
            >>> SkippedGroup("archive", 2, ("a.7z", "b.rar")).line()
            'skipped archives in formats that are not read: 2 (a.7z, b.rar); unpack them, or pack them as .tar or .zip'
        """
        what, advice = REASONS.get(self.reason, (self.reason, ""))
        names = ", ".join(map(shell_name, self.names[:_SHOWN_NAMES]))
        more = ", ..." if self.count > len(self.names[:_SHOWN_NAMES]) else ""
        text = f"{'note:' if self.reason in NOTES else 'skipped'} {what}: {self.count:,} ({names}{more})"
        if not advice or not with_advice:
            return text
        suffixes = dict.fromkeys(PurePath(name).suffix for name in self.names)
        patterns = [f"include (--include) {shell_name('*' + suffix)!r}" for suffix in suffixes if suffix]
        return f"{text}; {advice.format(include=' and '.join(patterns[:_SHOWN_SUFFIXES]))}"


class SkippedFiles:
    """Counts what a listing skips; memory does not grow with it.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.skipped import SkippedFiles
        >>> skipped = SkippedFiles()
        >>> skipped.note("hidden", ".cache")
        >>> skipped.groups()
        (SkippedGroup(reason='hidden', count=1, names=('.cache',)),)
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def note(self, reason: str, name: str) -> None:
        """Count one file; `reason` is a key of REASONS."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < MAX_NAMES:
            names.append(name)

    def groups(self) -> tuple[SkippedGroup, ...]:
        """Return what was skipped, in the order of REASONS."""
        return tuple(
            SkippedGroup(reason, self._counts[reason], tuple(self._names[reason]))
            for reason in REASONS
            if reason in self._counts
        )


def write_skipped(path: Path, groups: Iterable[SkippedGroup]) -> None:
    """Store what a listing skipped."""
    stored = [{"reason": group.reason, "count": group.count, "names": group.names} for group in groups]
    with atomic_write(path) as file:
        file.write(json.dumps(stored, indent=1).encode())


def read_skipped(path: Path) -> tuple[SkippedGroup, ...]:
    """Return what `write_skipped` stored; nothing if there is no such file, or it is damaged."""
    if not own_exists(path):
        return ()
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError), open_own(path) as file:
        return tuple(
            SkippedGroup(str(row["reason"]), int(row["count"]), tuple(map(str, row["names"])))
            for row in json.loads(file.read(_MAX_BYTES))
        )
    return ()
