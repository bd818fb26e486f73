"""Open-Sora's CSV and Open-Sora-Plan's JSON, made from the journal when all of it is there."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ...media import read_media
from ...open_sora import Annotation, AnnotationError, Write, open_sora_plan_writer, open_sora_writer
from ..state.journal import read_pairs
from ..state.listing import Listing
from ..state.records import Item, Record
from .base import Target, note

_MEASURES = ("width", "height", "num_frames", "fps")


class AnnotationSink:
    """Waits until the job is done, and then writes a trainer's file; nothing has to be resumed.

    Inputs that failed, and those that a trainer could not use, are left out.

    Raises:
        ValueError: an input is no file of its own, or they share no folder.
    """

    suffix: str
    name: str

    def __init__(self, target: Target, journal: Path) -> None:
        self._path, self._listing, self._journal = target.file(self.suffix, self.name), target.listing, journal
        self._folder = Path(target.options.folder or common_folder(target.listing)).absolute()
        self.left_out: list[str] = []

    def open(self, path: Path, folder: Path) -> AbstractContextManager[Write]:
        """Begin the file."""
        raise NotImplementedError

    def write(self, record: Record) -> None:
        """Do nothing: the journal has the record."""

    def flush(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Write the file."""
        self.left_out.clear()
        with self.open(self._path, self._folder) as write:
            for item, record in read_pairs(self._journal, self._listing):
                if record.error is None and record.captions:
                    try:
                        write(self._annotation(item, record))
                    except (ValueError, OSError) as error:
                        if isinstance(error, OSError) and not isinstance(error, ValueError):
                            raise
                        note(self.left_out, item, str(error))

    def _annotation(self, item: Item, record: Record) -> Annotation:
        if item.path is None:
            raise AnnotationError("it is no file of its own")
        try:
            path = Path(item.path).relative_to(self._folder).as_posix()
        except ValueError:
            raise AnnotationError(f"it is not in the folder of the data, {self._folder}") from None
        return Annotation(path, record.captions, **_measures(item, record))


class OpenSoraSink(AnnotationSink):
    """The CSV of Open-Sora."""

    suffix, name = ".csv", "open_sora.csv"

    def open(self, path: Path, folder: Path) -> AbstractContextManager[Write]:
        """Begin the file."""
        return open_sora_writer(path, folder)


class OpenSoraPlanSink(AnnotationSink):
    """The JSON of Open-Sora-Plan."""

    suffix, name = ".json", "open_sora_plan.json"

    def open(self, path: Path, folder: Path) -> AbstractContextManager[Write]:
        """Begin the file."""
        return open_sora_plan_writer(path)


def _measures(item: Item, record: Record) -> dict[str, Any]:
    """Return size, and length of a video; what was not read for a caption that was kept is read now."""
    if item.locator["kind"] == "video" and "num_frames" in record.columns:
        return {name: record.columns[name] for name in _MEASURES}
    if item.locator["kind"] == "file" and record.width and record.height:
        return {"width": record.width, "height": record.height}
    media = read_media(item.path or "")
    return {name: getattr(media, name) for name in _MEASURES}


def common_folder(listing: Listing) -> Path:
    """Return the innermost folder that holds all files of a listing.

    Raises:
        ValueError: an input is no file of its own.
    """
    common: Path | None = None
    last = None
    for item in listing.items():
        if item.locator.get("kind") == "failure":
            continue
        if item.path is None:
            raise ValueError(
                f"{item.source} is no file of its own, as Open-Sora's trainers need: give another format, such as jsonl"
            )
        folder = Path(item.path).parent
        if folder != last:  # files of a folder come together
            common, last = folder if common is None else Path(os.path.commonpath((common, folder))), folder
    return common or Path.cwd()
