"""imagefolder: metadata.jsonl beside the images, as `datasets.load_dataset("imagefolder")` reads a folder."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from ..readers.base import ItemError
from ..readers.reader import Reader
from ..state.atomic_files import partial_path, sync_directory, sync_files
from ..state.records import ON_DISK, Item, portable_dumps
from ..state.regular_files import create_own, open_own, remove_own, rename_own
from .appended_file import AppendedFileWriter
from .base import Progress, Target, note_left_out
from .finishing import OutputRecord
from .media import image_suffix, possible_suffixes
from .rows import named_texts

FILE_NAME, TEXT, TEXTS = "file_name", "text", "captions"  # the first is the loader's; trainers expect the second
_GROUP = 128  # images that are written under other names before all of them are renamed


class ImageFolderWriter(AppendedFileWriter):
    """Writes metadata.jsonl, and copies the images into the same folder unless they are there.

    An object has the image's path relative to metadata.jsonl, the first caption as `text`, all of them as `captions`,
    and named texts under their names. The copies keep the folder tree of the inputs: their names are the keys, so that
    text files of the format "txt" are beside them. Inputs that failed, and videos, have no row. If an input had one
    before, as one whose caption was rejected in a review, its copy is removed: a trainer would take it without a text.

    Raises:
        ValueError: some of the inputs are in the folder and others are not: a copy would be an input of the next run.
    """

    def __init__(self, target: Target) -> None:
        self._folder = target.path().absolute()
        self._is_in_place = _is_in_place(target, self._folder)
        self._reader = Reader(downloads=target.options.downloads)
        self._may_have_copies = not self._is_in_place and (target.progress or target.stale) is not None
        self._waiting: list[Path] = []  # images that are complete but for their names
        super().__init__(target)

    def row(self, item: Item, record: OutputRecord) -> str | None:
        """Return a record's object, after copying its image."""
        if record.error is not None or not record.captions:
            self._remove_copy(item, record)
            return None
        problem = self._problem(item)
        if problem:
            note_left_out(self.left_out, item, problem)
            return None
        name = self._relative(item) if self._is_in_place else self._copied(item, record)
        if name is None:
            return None
        texts = named_texts(record, self._options)
        return portable_dumps({FILE_NAME: name, TEXT: record.captions[0], TEXTS: list(record.captions), **texts})

    def _problem(self, item: Item) -> str | None:
        """Return why the loader could not find or open an image under its name, or None."""
        if item.locator.get("kind") == "video" or "video" in item.locator:
            return "it is a video, which a folder of images cannot contain"
        name = self._relative(item) if self._is_in_place else item.key
        try:
            name.encode()
        except UnicodeEncodeError:
            return "its name is not valid UTF-8, so no JSON can contain it: rename the file"
        return "datasets takes the \\ in its name for a /: rename the file" if "\\" in name else None

    def _relative(self, item: Item) -> str:
        return Path(item.path or "").relative_to(self._folder).as_posix()

    def flush(self) -> Progress:
        """Write images and then the rows that name them to disk."""
        self._rename_images()
        return super().flush()

    def finish(self) -> Progress:
        """Complete the folder."""
        self._rename_images()
        return super().finish()

    def _copied(self, item: Item, record: OutputRecord) -> str | None:
        """Copy an image, and return its path relative to the folder; None if that is not possible."""
        try:
            data = self._reader.data(item)
        except ItemError as error:
            note_left_out(self.left_out, item, f"it can no longer be read: {error}")
            return None
        if record.sha256 is not None and hashlib.sha256(data).hexdigest() != record.sha256:
            note_left_out(self.left_out, item, "it was changed after it was captioned")
            return None
        name = item.key + image_suffix(item, data)
        path = self._folder / name
        if os.path.lexists(path):
            if _content(path, len(data)) == data:
                return name
            note_left_out(self.left_out, item, f"{path} is another file: delete it, or choose another out (--out)")
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with create_own(partial_path(path)) as file:
            file.write(data)
        self._waiting.append(path)
        if len(self._waiting) >= _GROUP:
            self._rename_images()
        return name

    def _remove_copy(self, item: Item, record: OutputRecord) -> None:
        """Remove the copy of an image that has no row any more, if it is one."""
        if not self._may_have_copies or record.sha256 is None or self._problem(item):
            return
        for path in (self._folder / f"{item.key}{suffix}" for suffix in possible_suffixes(item)):
            if os.path.lexists(path) and _digest(path) == record.sha256:
                remove_own(path)

    def _rename_images(self) -> None:
        partials = [partial_path(path) for path in self._waiting]
        missing = sync_files(partials)
        if missing:
            raise FileNotFoundError(f"{min(missing)} was deleted before it could be renamed: run the job again")
        for path in self._waiting:
            rename_own(partial_path(path), path)
        for directory in {parent for path in self._waiting for parent in path.parents if self._holds(parent)}:
            sync_directory(directory)
        self._waiting.clear()

    def _holds(self, directory: Path) -> bool:
        return directory == self._folder or self._folder in directory.parents


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None of what is no regular file."""
    digest = hashlib.sha256()
    with suppress(OSError), open_own(path) as file:
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()
    return None


def _content(path: Path, size: int) -> bytes | None:
    """Return the bytes of a file of this size; None of any other, and of what is no regular file."""
    with suppress(OSError), open_own(path) as file:
        if os.fstat(file.fileno()).st_size == size:
            return file.read()
    return None


def _is_in_place(target: Target, folder: Path) -> bool:
    """Return whether the inputs are files in the folder, so that nothing has to be copied."""
    found: dict[bool, str] = {}
    for item in target.listing.items():
        if item.locator.get("kind") == "failure":
            continue
        is_inside = item.locator.get("kind") in ON_DISK and folder in Path(item.path or "").parents
        found.setdefault(is_inside, item.source)
        if len(found) == 2:
            raise ValueError(
                f"{found[True]} is in {folder}, and {found[False]} is not: copies of the others in that folder would "
                "be inputs of the next run; choose another folder as out (--out)"
            )
    return found.get(True) is not None
