"""The metadata file of sd-scripts (kohya): one JSON object of image paths, written when the job is complete."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

from ..prompts.styles import asks_for_tags
from ..state.atomic_files import atomic_write
from ..state.listing import Listing
from ..state.records import ON_DISK, Item, Record, portable_dumps
from ..state.temp_table import TempTable
from .base import Progress, Target, note_left_out
from .rows import joined
from .tags import TAGS


class SdScriptsWriter:
    """Writes what `FineTuningDataset` of sd-scripts reads (`--in_json`, or `metadata_file` of a dataset's TOML).

    A key is an absolute path, so that no `image_dir` is needed. `caption` has one line for each of several captions, of
    which the trainer draws one with `enable_wildcard`, and uses the first without. `tags` are the captions of the style
    "tags", or the column "tags" of the input; the trainer puts them behind the caption. Of named texts, the one named
    "tags" is the tags, and the other one the caption (`tags.check_texts`). The size is not written, since
    the trainer needs it as the file stores it, before the rotation in its EXIF data, and measures it itself. Inputs
    that failed, and videos, have no entry.

    Raises:
        ValueError: an input is not a separate file.
    """

    def __init__(self, target: Target) -> None:
        _check_all_are_files(target.listing)
        self._path, self._target = target.file(), target
        self.start = len(target.listing)  # needs no single records
        self.left_out: list[str] = []

    def write(self, item: Item, record: Record) -> None:
        """Do nothing: `finish` reads the records from the journal."""

    def flush(self) -> Progress:
        """Do nothing: nothing is written before `finish`."""
        return {"records": self.start}

    def finish(self) -> Progress:
        """Write the file."""
        self.left_out.clear()
        before = "{\n"
        with atomic_write(self._path) as file, closing(TempTable()) as written:
            for item, record in self._target.pairs():
                if record.error is not None or not record.captions:
                    continue
                problem = _problem(item, written)
                if problem:
                    note_left_out(self.left_out, item, problem)
                    continue
                line = f"{before}{portable_dumps(item.path)}: {portable_dumps(_entry(record))}"
                file.write(line.encode())
                before = ",\n"
            file.write(b"{}\n" if before.startswith("{") else b"\n}\n")
        return self.flush()


def _problem(item: Item, written: TempTable) -> str | None:
    """Return why an input has no entry, or None; `written` has the paths of the entries so far."""
    if item.locator.get("kind") == "video":
        return "it is a video, which sd-scripts does not read"
    path = item.path or ""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8, so no JSON can contain it: rename the file"
    if not written.add(os.fsencode(path)):
        return "an earlier input is the same file, and sd-scripts has one entry for each file"
    return None


def _entry(record: Record) -> dict[str, str]:
    are_tags = [asks_for_tags(prompt) for prompt in record.prompts]
    if record.texts:
        are_tags = [name == TAGS for name in record.texts[: len(record.captions)]]
    if len(are_tags) != len(record.captions):  # a caption that existed was asked for by nobody
        are_tags = [False] * len(record.captions)
    pairs = list(zip(record.captions, are_tags, strict=True))
    captions = [caption for caption, is_tags in pairs if not is_tags]
    tags = ", ".join(caption for caption, is_tags in pairs if is_tags) or _as_tags(record.columns.get(TAGS))
    entry = {"caption": joined(captions)} if captions else {}
    return {**entry, TAGS: tags} if tags else entry


def _as_tags(value: Any) -> str:
    """Return the tags of an input's column, a text or a list of texts; "" for anything else."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return ", ".join(tag.strip() for tag in value if tag.strip())
    return ""


def _check_all_are_files(listing: Listing) -> None:
    for item in listing.items():
        if item.locator.get("kind") not in (*ON_DISK, "failure"):
            raise ValueError(
                f"{item.source} is not a separate file, which sd-scripts needs: the formats imagefolder and txt "
                "(--format imagefolder --format txt) write a folder of images with caption files"
            )
