"""Sidecars: a text file a caption, beside its picture or by its key under another root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from ..state.atomic_files import PARTIAL_SUFFIX, sync_directory
from ..state.existing_captions import KEPT_EXISTING
from ..state.records import Item, Record
from .base import Mark, Target, note
from .rows import caption_text

_GROUP = 512  # files that are written and not yet in their places
_LONGEST = 255  # bytes of a name that file systems take
# Locators, as lines of a listing hold them, of inputs that have a place beside them or need none.
_PLACED = (b'"locator":{"kind":"file"', b'"locator":{"kind":"video"', b'"locator":{"kind":"failure"')


class SidecarWriter:
    """Writes files aside, brings a group of them to the disk, and then puts them in their places.

    Every record is looked at again when a job goes on: a caption that somebody removed comes back.

    Raises:
        ValueError: there is no root, and an input is no file of its own.
    """

    suffix = ".txt"

    def __init__(self, target: Target) -> None:
        self._root = None if target.out is None else target.directory("captions beside pictures").absolute()
        if self._root is None:
            _require_places(target)
        self.start = 0
        self.left_out: list[str] = []
        self._durable = int((target.mark or {}).get("durable", 0))
        self._next = 0
        # Jobs on folders that overlap put captions into the same ones; none may take what another writes.
        self._ending = f".share4v-{_digest(str(target.listing.path.resolve()))[:12]}{PARTIAL_SUFFIX}"
        self._waiting: dict[Path, tuple[Path, Item]] = {}
        self._new_directories: set[Path] = set()

    def write(self, item: Item, record: Record) -> None:
        """Write a record's captions aside; a failure writes nothing, and an existing caption that is kept stays."""
        self._next = record.number + 1
        if record.error is not None or not record.captions:
            return
        path = self.place(item)
        if path is None:
            note(self.left_out, item, "it has no place beside it")
            return
        is_there = os.path.lexists(path)
        if is_there and (record.number < self._durable or record.stands or KEPT_EXISTING in record.notes):
            return
        partial = self._partial(path)
        if self._root is not None:
            self._make(path.parent)
        try:
            with partial.open("wb") as file:
                file.write(caption_text(record))
        except FileNotFoundError:
            note(self.left_out, item, "its directory has vanished")
            return
        self._waiting[partial] = path, item
        if len(self._waiting) >= _GROUP:
            self._place_all()

    def flush(self) -> Mark:
        """Put the files in their places."""
        self._place_all()
        return {"records": 0, "durable": self._next}

    def finish(self) -> Mark:
        """Put the last files in their places."""
        return self.flush()

    def place(self, item: Item) -> Path | None:
        """Return the path of an item's caption; None where there is none."""
        if self._root is not None:
            return self._root / (item.key + self.suffix)
        return None if item.path is None else Path(item.path).with_name(item.key.rpartition("/")[2] + self.suffix)

    def _partial(self, path: Path) -> Path:
        """Return where a caption is written: a name that tells its picture and its job."""
        name = f".{path.name}{self._ending}"
        if len(os.fsencode(name)) > _LONGEST:
            name = f".{_digest(path.name)}{self._ending}"
        return path.with_name(name)

    def _make(self, directory: Path) -> None:
        missing = []
        while not directory.exists():
            missing.append(directory)
            directory = directory.parent
        for one in reversed(missing):
            one.mkdir(exist_ok=True)
            self._new_directories.add(one.parent)

    def _place_all(self) -> None:
        for partial, (_, item) in list(self._waiting.items()):
            try:
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
            except FileNotFoundError:
                note(self.left_out, item, "its caption was removed while it was being written")
                del self._waiting[partial]
        for partial, (path, _) in self._waiting.items():
            partial.replace(path)
        for directory in {path.parent for path in self._waiting} | self._new_directories:
            sync_directory(directory)
        self._waiting.clear()
        self._new_directories.clear()


class CaptionSidecarWriter(SidecarWriter):
    """The same with another ending."""

    suffix = ".caption"


def _digest(text: str) -> str:
    return sha256(os.fsencode(text)).hexdigest()


def _require_places(target: Target) -> None:
    for item in _without_place(target):
        raise ValueError(
            f"{item.source} is no file of its own, so that no caption can be put beside it: give a directory as out, "
            "or a format such as jsonl"
        )


def _without_place(target: Target) -> Iterator[Item]:
    """Yield inputs that are no files; lines of a listing are not read where a look at their bytes tells."""
    with target.listing.path.open("rb") as file:
        for number, line in enumerate(file):
            if not any(sign in line for sign in _PLACED):
                yield next(target.listing.items(number))
