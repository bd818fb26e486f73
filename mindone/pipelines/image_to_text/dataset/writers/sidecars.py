"""Sidecars: one text file per image, beside the image or under a root directory."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ..state.atomic_files import PARTIAL_SUFFIX, lines_from, sync_directory, sync_files
from ..state.existing_captions import KEPT_EXISTING, MAX_CAPTION_BYTES, decode_caption
from ..state.keys import fold
from ..state.paths import WRITTEN
from ..state.previous_run import WrittenCaptions
from ..state.records import Item
from ..state.regular_files import NotRegularFileError, create_own, open_own, own_exists, remove_own, rename_own
from .base import Progress, Target, note_left_out
from .finishing import OutputRecord
from .rows import caption_files, caption_text

_GROUP = 512  # files that are written to temporary names before all of them are renamed
_MAX_NAME_BYTES = 255  # of a file name, on common file systems
# Locators in lines of a listing, of inputs that are separate files or need no sidecar.
_FILE_LOCATORS = (b'"locator":{"kind":"file"', b'"locator":{"kind":"video"', b'"locator":{"kind":"failure"')


class SidecarWriter:
    """Writes a group of files to temporary names, syncs them to disk, and then renames them.

    When a job resumes, every record is checked again, so a caption file that was deleted is restored. When it was
    restarted, files of the earlier run that nothing replaces are removed: texts whose names are no longer used, and
    captions of inputs that fail now. A caption that such a file had replaced is written again.

    Raises:
        ValueError: `out` is None, and an input is not a separate file.
    """

    suffix = ".txt"

    def __init__(self, target: Target) -> None:
        self._root = None if target.out is None else target.path().absolute()
        if self._root is None:
            _check_all_are_files(target)
        self.start = 0
        self.left_out: list[str] = []
        self._target = target
        self._durable = int((target.progress or {}).get("durable", 0))  # records below it had their files on disk
        self._next = 0
        # Unique per job: jobs on overlapping folders may write sidecars of the same images.
        self._ending = f".share4v-{_digest(str(target.listing.path.resolve()))[:12]}{PARTIAL_SUFFIX}"
        self._waiting: dict[Path, tuple[Path, Item]] = {}  # temporary path -> final path
        self._changed_directories: set[Path] = set()
        self._earlier: WrittenCaptions | None = None  # opened when it is needed
        self._is_restarted = own_exists(target.journal.parent / WRITTEN)
        _check_no_name_twice(target)

    def write(self, item: Item, record: OutputRecord) -> None:
        """Write a record's captions to a temporary file; failures and kept existing captions write nothing."""
        self._next = record.number + 1
        is_reviewed = self._target.is_changed(record)
        # After a restart, a file that is not an existing caption has what the job wrote before, whatever its wording.
        is_written = record.number < self._durable or record.stands or KEPT_EXISTING in record.notes
        has_new_wording = self._target.has_new_wording and is_written and KEPT_EXISTING not in record.notes
        is_changed = is_reviewed or has_new_wording
        if record.error is not None or not record.captions:
            if is_reviewed or (has_new_wording and record.recorded):
                self._remove_captions(item, record)
            self._remove_earlier_texts(item, ())
            return
        path = self.path_of(item)
        if path is None:
            note_left_out(self.left_out, item, "it is not a separate file, so there is no path beside it")
            return
        for name, text in caption_files(record).items():
            named = self._named(path, name)
            is_kept = is_written and not is_changed and os.path.lexists(named)
            if not is_kept and self._may_replace(item, record, name, named, is_changed):
                self._write_file(item, named, text)
        if KEPT_EXISTING not in record.notes:
            self._remove_earlier_texts(item, caption_files(record))

    def _remove_earlier_texts(self, item: Item, names: Collection[str]) -> None:
        """Remove the files that the job wrote before it was restarted, except those of the texts of these names."""
        first = self.path_of(item) if self._is_restarted else None
        if first is None:
            return
        for name in {"", *(f".{one}" for one in self._earlier_captions().names)}.difference(names):
            path = self._named(first, name)
            if not own_exists(path) or not self._is_of_earlier_run(item, _read(path), name):
                continue
            if not name and item.caption is not None:
                self._write_file(item, path, caption_text([item.caption]))
            else:
                remove_own(path)
                self._changed_directories.add(path.parent)

    def _may_replace(self, item: Item, record: OutputRecord, name: str, path: Path, is_changed: bool) -> bool:
        """Return whether to write a caption file: not one that is as it should be, or that a person wrote.

        Only of the first text's file is it known from the listing whether it existed before the job.
        """
        if not os.path.lexists(path) or not (is_changed or name or self._target.is_decided(record)):
            return True
        found = _read(path)
        if found == caption_files(record)[name]:
            return False
        if self._is_known(found, record, name) or self._is_of_earlier_run(item, found, name):
            return True
        note_left_out(self.left_out, item, f"{path.name} has another text than the job and reviews gave it: kept")
        return False

    def _write_file(self, item: Item, path: Path, text: bytes) -> None:
        """Write a text to the temporary file of a path, which is renamed with others."""
        partial = self._partial(path)
        if self._root is not None:
            self._make_directories(path.parent)
        try:
            with create_own(partial) as file:
                file.write(text)
        except FileNotFoundError:
            note_left_out(self.left_out, item, "its directory no longer exists")
            return
        except ValueError:  # surrogates in the text of a table's path
            note_left_out(self.left_out, item, "the path of its caption cannot be encoded")
            return
        self._waiting[partial] = path, item
        if len(self._waiting) >= _GROUP:
            self._rename_all()

    def _remove_captions(self, item: Item, record: OutputRecord) -> None:
        """Delete the caption files of an input without captions, if their texts are those of the job or a review.

        The captions were rejected, or cannot be put into the template. Any other text may be a person's, who edited
        the file.
        """
        first = self.path_of(item)
        for name in ("", *(f".{name}" for name in record.texts[1:])):
            path = first and self._named(first, name)
            if path is None or not own_exists(path):
                continue
            if KEPT_EXISTING in record.notes:
                note_left_out(self.left_out, item, f"{record.error}, but its caption file existed before the job: kept")
            elif self._is_known(_read(path), record, name):
                remove_own(path)
                self._changed_directories.add(path.parent)
            else:
                note_left_out(self.left_out, item, f"{record.error}, but its caption file has another text: kept")

    def _is_known(self, found: bytes | None, record: OutputRecord, name: str) -> bool:
        """Return whether the job or a review gave a caption file its text; any other text is a person's.

        A caption that existed before the job may have had any whitespace around it, and a byte order mark.
        """
        if found is None:
            return False
        text = decode_caption(found)
        for captions in self._target.known_texts(record):
            known = caption_files(replace(record, captions=captions)).get(name) if captions else None
            if known is not None and decode_caption(known) == text:
                return True
        return False

    def _is_of_earlier_run(self, item: Item, found: bytes | None, name: str) -> bool:
        """Return whether the job wrote a text before it was restarted."""
        text = None if found is None else decode_caption(found)
        return text is not None and self._earlier_captions().wrote(item, name.removeprefix("."), text)

    def _earlier_captions(self) -> WrittenCaptions:
        """Return what the job wrote before it was restarted; nothing if it was not."""
        if self._earlier is None:
            listing, state = self._target.listing, self._target.journal.parent
            self._earlier = WrittenCaptions(state / "none", listing, state / WRITTEN)
        return self._earlier

    def _named(self, path: Path, name: str) -> Path:
        """Return the path of a named text's file beside that of the first text: a.short.txt beside a.txt."""
        return path.with_name(f"{path.name[: -len(self.suffix)]}{name}{self.suffix}") if name else path

    def flush(self) -> Progress:
        """Rename the waiting files to their final names."""
        self._rename_all()
        return {"records": 0, "durable": self._next}

    def finish(self) -> Progress:
        """Rename the last files to their final names."""
        return self.flush()

    def path_of(self, item: Item) -> Path | None:
        """Return the path of an item's sidecar, or None if there is none.

        An existing caption file whose name differs only in case or normalization, such as a.TXT, is that path.
        """
        if self._root is not None:
            path = self._root / (item.key + self.suffix)
        elif item.path is not None:
            path = Path(item.path).with_name(item.key.rpartition("/")[2] + self.suffix)
        else:
            return None
        existing = item.locator.get("caption_file")
        return path.with_name(existing) if isinstance(existing, str) and fold(existing) == fold(path.name) else path

    def _partial(self, path: Path) -> Path:
        """Return the temporary path of a sidecar, which is unique to the image and the job."""
        name = f".{path.name}{self._ending}"
        if len(os.fsencode(name)) > _MAX_NAME_BYTES:
            name = f".{_digest(path.name)}{self._ending}"
        return path.with_name(name)

    def _make_directories(self, directory: Path) -> None:
        missing = []
        while not directory.exists():
            missing.append(directory)
            directory = directory.parent
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._changed_directories.add(path.parent)

    def _rename_all(self) -> None:
        missing = sync_files(self._waiting)
        for partial in [path for path in self._waiting if path in missing]:
            _, item = self._waiting.pop(partial)
            note_left_out(self.left_out, item, "its temporary file was deleted before it could be renamed")
        for partial, (path, _) in self._waiting.items():
            rename_own(partial, path)
        for directory in {path.parent for path, _ in self._waiting.values()} | self._changed_directories:
            sync_directory(directory)
        self._waiting.clear()
        self._changed_directories.clear()


class CaptionSidecarWriter(SidecarWriter):
    """Sidecars with the suffix .caption."""

    suffix = ".caption"


def _read(path: Path) -> bytes | None:
    """Return the content of a caption file; None if it is a link, no regular file, or larger than a caption."""
    try:
        with open_own(path) as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
    except (NotRegularFileError, IsADirectoryError):
        return None
    return data if len(data) <= MAX_CAPTION_BYTES else None


def _digest(text: str) -> str:
    return sha256(os.fsencode(text)).hexdigest()


def _check_all_are_files(target: Target) -> None:
    for item in _not_separate_files(target):
        raise ValueError(
            f"{item.source} is not a separate file, so no caption can be written beside it: pass a directory as out "
            "(--out), or choose a format such as jsonl"
        )


def _check_no_name_twice(target: Target) -> None:
    """Check that no named text's file would be that of another image: a.short.txt of a.png, or of a.short.png."""
    endings = tuple(f".{fold(name)}" for name in target.options.texts[1:])
    found = {fold(item.key): item.source for item in target.listing.items() if fold(item.key).endswith(endings)}
    if not endings or not found:
        return
    for item in target.listing.items():
        for ending in endings:
            if fold(item.key) + ending in found:
                raise ValueError(
                    f"texts: the caption file {item.key}{ending}{target.row.name and '.' + target.row.name} would be "
                    f"that of two images, {item.source} and {found[fold(item.key) + ending]}: choose another name for "
                    "the text, or a format such as jsonl"
                )


def _not_separate_files(target: Target) -> Iterator[Item]:
    """Yield inputs inside tables or archives; to be fast, most lines of the listing are not parsed."""
    for number, line in enumerate(lines_from(target.listing.path)):
        if not any(locator in line for locator in _FILE_LOCATORS):
            yield next(target.listing.items(number))
