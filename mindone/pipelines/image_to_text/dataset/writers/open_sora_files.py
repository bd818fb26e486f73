"""Open-Sora's CSV and Open-Sora-Plan's JSON annotation files, written from the journal when the job is complete."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ...media import read_media
from ...open_sora import Annotation, AnnotationError, Write, open_sora_plan_writer, open_sora_writer
from ..state.listing import Listing
from ..state.records import Item
from .base import Progress, Target, note_left_out
from .finishing import OutputRecord

_MEASURES = ("width", "height", "num_frames", "fps")


class AnnotationWriter:
    """Base class: writes the whole annotation file in `finish`, so there is nothing to resume.

    Inputs that failed, and inputs that the trainer could not use, are left out.

    Raises:
        ValueError: an input is not a separate file.
    """

    def __init__(self, target: Target) -> None:
        self._path, self._target = target.file(), target
        self._folder = Path(target.options.folder or common_folder(target.listing)).absolute()
        self.start = len(target.listing)  # needs no single records
        self.left_out: list[str] = []

    def open(self, path: Path, folder: Path) -> AbstractContextManager[Write]:
        """Open the annotation file; paths in it are relative to `folder`."""
        raise NotImplementedError

    def write(self, item: Item, record: OutputRecord) -> None:
        """Do nothing: `finish` reads the records from the journal."""

    def flush(self) -> Progress:
        """Do nothing: nothing is written before `finish`."""
        return {"records": self.start}

    def finish(self) -> Progress:
        """Write the file."""
        self.left_out.clear()
        with self.open(self._path, self._folder) as write:
            for item, record in self._target.pairs():
                if record.error is not None or not record.captions:
                    continue
                try:
                    annotation = self._annotation(item, record)
                    write(annotation)
                except ValueError as error:
                    note_left_out(self.left_out, item, str(error))
        return self.flush()

    def _annotation(self, item: Item, record: OutputRecord) -> Annotation:
        if item.path is None:
            raise AnnotationError("it is not a separate file")
        try:
            path = Path(item.path).relative_to(self._folder).as_posix()
        except ValueError:
            raise AnnotationError(f"it is not in the data folder, {self._folder}") from None
        # With several budgets, the first one is that of the trainer's text encoder; of named texts, only the first one
        # is in the file.
        fit = self._target.options.wording.of(record, 1)[0].fit[:1]
        lengths = record.text_tokens.get(*fit) if fit else None
        captions = record.captions[:1] if record.texts else record.captions
        return Annotation(path, captions, **_measures(item, record), text_lens=lengths)


class OpenSoraWriter(AnnotationWriter):
    """The CSV of Open-Sora."""

    def open(self, path: Path, folder: Path) -> AbstractContextManager[Write]:
        """Open the CSV file."""
        return open_sora_writer(path, folder, text_len=self._target.options.has_budgets)


class OpenSoraPlanWriter(AnnotationWriter):
    """The JSON of Open-Sora-Plan."""

    def open(self, path: Path, folder: Path) -> AbstractContextManager[Write]:
        """Open the JSON file."""
        return open_sora_plan_writer(path)


def _measures(item: Item, record: OutputRecord) -> dict[str, Any]:
    """Return the size in pixels and, for a video, its length.

    The record has them unless the existing caption was kept and the media file was therefore never read.
    """
    if item.locator["kind"] == "video" and "num_frames" in record.columns:
        return {name: record.columns[name] for name in _MEASURES}
    if item.locator["kind"] == "file" and record.width and record.height:
        return {"width": record.width, "height": record.height}
    media = read_media(item.path or "")
    return {name: getattr(media, name) for name in _MEASURES}


def common_folder(listing: Listing) -> Path:
    """Return the innermost folder that holds all files of a listing.

    Raises:
        ValueError: an input is not a separate file.
    """
    common: Path | None = None
    last = None
    for item in listing.items():
        if item.locator.get("kind") == "failure":
            continue
        if item.path is None:
            raise ValueError(
                f"{item.source} is not a separate file, which Open-Sora's trainers need: choose another format, such "
                "as jsonl"
            )
        folder = Path(item.path).parent
        if folder != last:  # cheap test first: files of one folder are listed together
            common, last = folder if common is None else Path(os.path.commonpath((common, folder))), folder
    return common or Path.cwd()
