"""Near-equal inputs of a job: the images' hashes, computed before the first caption, and who is whose first.

With `near_equal`, a record depends on the images of other inputs. So that it does not depend on the order in which
workers finish, or on where a run was killed, all hashes are known before the first caption. They are in a file of the
state directory, one line for each input in order; a run that was killed resumes it.
"""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

from .audit.image_hash import hash_of_frames
from .audit.near_images import NearImages
from .readers import ItemError, read_item
from .readers.read_pool import ReadPool
from .state.atomic_files import AppendOnlyFile, lines_from
from .state.bounded_reading import parse_json
from .state.existing_captions import KEPT_EXISTING
from .state.paths import IMAGE_HASHES
from .state.records import Item, Record, dumps, record_from_line, to_line
from .state.regular_files import open_own, own_exists
from .state.temp_table import TempTable

NOTED, SHARED = "near-equal to an earlier image", "caption of a near-equal image"  # notes of records
_AHEAD = 8  # images read ahead, per thread
_GROUP = 64  # lines that are flushed together

if TYPE_CHECKING:
    from .options import CaptioningSettings

# Yields the inputs from a number on, each with its record if that needs no model.
Inputs = Callable[[int], Iterator[tuple[Item, "Record | None"]]]


@dataclass(frozen=True)
class ImageFacts:
    """What the first pass over the images found out about one.

    Attributes:
        key: of the input.
        hash: perceptual hash; None if the image cannot be read, or the input needs no caption.
        sha256, width, height, columns, download: as in a Record.
    """

    key: str
    hash: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    download: dict[str, int] = field(default_factory=dict)


class NearEqualInputs:
    """The groups of a job's near-equal inputs, and the records of the first input of each.

    Args:
        directory: state directory of the job.
        mode: "note" or "once".
        inputs: the job's inputs.
        settings: how images are read.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, directory: Path, mode: str, inputs: Inputs, settings: CaptioningSettings) -> None:
        self.mode, self._path, self._settings = mode, directory / IMAGE_HASHES, settings
        self._write_hashes(inputs, settings.workers)
        self._offsets = array("Q")
        numbers, offset = [], 0
        with closing(NearImages()) as near:
            for number, line in enumerate(lines_from(self._path)):
                self._offsets.append(offset)
                offset += len(line)
                facts = ImageFacts(**json.loads(line))
                if facts.hash is not None:
                    near.add(facts.hash, "")
                    numbers.append(number)
            hashed = np.array(numbers, np.int64)
            self._firsts = np.full(len(self._offsets), -1, np.int64)
            self._firsts[hashed] = hashed[near.firsts()]
        later = np.flatnonzero((self._firsts >= 0) & (self._firsts != np.arange(len(self._firsts))))
        self._needed = frozenset(self._firsts[later].tolist())
        self._records = TempTable("record TEXT")
        self._file = open_own(self._path)

    def close(self) -> None:
        """Close the files."""
        self._records.close()
        self._file.close()

    def first(self, number: int) -> int | None:
        """Return the number of the first input that an input nearly equals; None if there is no earlier one."""
        first = int(self._firsts[number])
        return None if first in (-1, number) else first

    def shares(self, number: int) -> bool:
        """Return whether an input gets the captions of an earlier one."""
        return self.mode == "once" and self.first(number) is not None

    def remember(self, record: Record) -> None:
        """Keep a record that later inputs need."""
        if record.number in self._needed:
            self._records.put(_key(record.number), to_line(record))

    def noted(self, record: Record) -> Record:
        """Return a record with a note about the image that it nearly equals, if there is one."""
        first = self.first(record.number)
        if first is None or record.error is not None:
            return record
        return replace(record, notes=(*record.notes, f"{NOTED}: {self._record(first).source}"))

    def shared(self, item: Item) -> Record:
        """Return the record of an input that gets the captions of an earlier one, or its failure."""
        first = self.first(item.number)
        if first is None:
            raise ValueError(f"{item.source} has no near-equal earlier image")
        record, facts = self._record(first), self._facts(item.number)
        own = replace(
            record,
            number=item.number,
            key=item.key,
            source=item.source,
            place=item.place,
            sha256=facts.sha256,
            image_hash=facts.hash,
            width=facts.width,
            height=facts.height,
            columns={**item.columns, **facts.columns},
            seconds=0.0,
            stands=False,
            usage={},
            download=facts.download,
        )
        if record.error is not None:
            return replace(own, error=f"the near-equal image {record.source} failed: {record.error}")
        return replace(own, notes=(*record.notes, f"{SHARED}: {record.source}"))

    def _record(self, number: int) -> Record:
        row = self._records.get(_key(number))
        if row is None:
            raise RuntimeError(f"the record of input {number} is needed before it was made")
        return record_from_line(row[0])

    def _facts(self, number: int) -> ImageFacts:
        self._file.seek(self._offsets[number])
        return ImageFacts(**json.loads(self._file.readline()))

    def _write_hashes(self, inputs: Inputs, workers: int) -> None:
        """Complete the file of hashes; lines of an earlier run stay as far as they belong to these inputs."""
        lines = lines_from(self._path) if own_exists(self._path) else iter(())
        count = size = 0
        for line, (item, _) in zip(lines, inputs(0), strict=False):
            if _key_in(line) != item.key:
                break
            count, size = count + 1, size + len(line)
        with closing(AppendOnlyFile(self._path)) as file:
            file.truncate(size)
            for facts in self._read(inputs(count), workers):
                file.append((dumps(asdict(facts)) + "\n").encode())
                if file.pending == _GROUP:
                    file.flush()
            file.flush()

    def _read(self, inputs: Iterator[tuple[Item, Record | None]], workers: int) -> Iterator[ImageFacts]:
        """Yield what is found out about each input, in order; threads read the images."""
        with ReadPool(workers, "share4v-hash") as pool:
            waiting: deque[Future[ImageFacts]] = deque()
            for item, settled in inputs:
                waiting.append(pool.submit(self._facts_of, item, settled))
                if len(waiting) > _AHEAD * workers + pool.waiting:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _facts_of(self, item: Item, settled: Record | None) -> ImageFacts:
        if settled is not None and (settled.error is not None or KEPT_EXISTING in settled.notes):
            return ImageFacts(item.key)
        if settled is not None and settled.image_hash is not None:
            return ImageFacts(item.key, settled.image_hash)
        try:
            picture = read_item(item, self._settings.downloads)
            images = [load_image(frame, self._settings.max_image_pixels) for frame in picture.frames]
        except (ItemError, ImageLoadError, OSError, ValueError, MemoryError):  # its own record will say so
            return ImageFacts(item.key)
        return ImageFacts(
            item.key,
            hash_of_frames(images),
            picture.sha256,
            *images[0].size,
            columns=dict(picture.columns),
            download=dict(picture.download),
        )


def find_near_equal(
    mode: str | None, directory: Path, settings: CaptioningSettings
) -> Callable[[Inputs], NearEqualInputs] | None:
    """Return the function that finds the near-equal inputs of a job; None without a mode."""
    if mode is None:
        return None
    return lambda inputs: NearEqualInputs(directory, mode, inputs, settings)


def _key_in(line: bytes) -> str | None:
    """Return the key of the input that a line is about; None if a crash damaged it, or another version wrote it."""
    try:
        return ImageFacts(**parse_json(line)).key if line.endswith(b"\n") else None
    except (ValueError, TypeError):
        return None


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")
