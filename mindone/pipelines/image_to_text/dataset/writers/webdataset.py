"""WebDataset shards: the samples of input shards with captions added, or new samples from other inputs."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..readers.base import ItemError
from ..readers.formats import suffix_of
from ..readers.reader import Reader
from ..readers.tar_shard import BLOCK, DAMAGE
from ..state.keys import fold
from ..state.records import Item, portable_dumps
from ..state.regular_files import create_own
from .base import Progress, Target, note_left_out
from .finishing import OutputRecord
from .media import image_suffix
from .part_files import Parts
from .rows import caption_files, output_row

SUFFIX, CAPTION = ".tar", ".txt"
_TAR_RECORD = 20 * BLOCK  # tar files are padded to a multiple of it


class WebDatasetWriter:
    """Writes one shard after another; a shard appears when it is complete, and is rewritten after a crash.

    A shard of the input becomes a shard of the same name: the members of its samples are copied byte for byte, and a
    member with the caption is added or replaced. Other inputs become samples `<number>.<ext>`, `<number>.json` (the
    record) and `<number>.txt` in shards of `shard_size` samples. Inputs that failed are left out.

    Raises:
        ValueError: the directory has shards that this job did not write, such as those of the input.
    """

    def __init__(self, target: Target) -> None:
        self._options = target.options
        self._parts = Parts(target.path(), target.row.pattern, target)
        progress = target.progress or {}
        self.start = self._next = progress.get("records", 0) if self._parts.names else 0
        self._numbered = progress.get("numbered", 0) if self._parts.names else 0
        self.left_out: list[str] = []
        self._reader = Reader(downloads=target.options.downloads)
        self._shard: _Shard | None = None
        self._sample: _Sample | None = None

    def write(self, item: Item, record: OutputRecord) -> None:
        """Add a sample, or a caption to a sample with several images."""
        self._next = record.number + 1
        if record.error is not None or not record.captions:
            return
        origin = item.locator["path"] if item.locator.get("kind") == "tar" else None
        shard = self._shard_for(origin, record.number)
        if origin is None:
            for name, data in self._new_sample(item, record):
                shard.add(name, data)
            return
        span = tuple(item.locator["sample"])
        if self._sample is None or self._sample.span != span:
            self._end_sample()
            self._sample = _Sample(span, item)
        for name, text in caption_files(record).items():
            self._sample.captions[f"{item.locator['name']}{name}{CAPTION}"] = text

    def flush(self) -> Progress:
        """Return which shards are complete; the current one is not."""
        first = self._next if self._shard is None else self._shard.first
        return self._parts.progress(first, numbered=self._numbered)

    def finish(self) -> Progress:
        """Complete the last shard."""
        self._end_shard()
        if not self._parts.finished:
            self._parts.finish()
        return self.flush()

    def _shard_for(self, origin: str | None, number: int) -> _Shard:
        """Return the shard for the next sample; each input shard has its own output shard."""
        shard = self._shard
        if shard is not None and (
            shard.origin != origin or (origin is None and shard.count >= self._options.shard_size)
        ):
            self._end_shard()
            shard = None
        if shard is None:
            name = self._name(origin)
            shard = self._shard = _Shard(self._parts.partial(name), name, origin, number)
        shard.count += 1
        return shard

    def _name(self, origin: str | None) -> str:
        stem = f"shard-{self._numbered:05d}" if origin is None else Path(origin).name[: -len(suffix_of(origin))]
        name, taken = stem, {existing.lower() for existing in self._parts.names}
        suffix = 2
        while f"{name}{SUFFIX}".lower() in taken:
            name, suffix = f"{stem}~{suffix}", suffix + 1
        return name + SUFFIX

    def _end_shard(self) -> None:
        self._end_sample()
        if self._shard is not None:
            self._shard.close()
            self._parts.publish(self._shard.name)
            self._numbered += self._shard.origin is None
            self._shard = None

    def _end_sample(self) -> None:
        """Copy the current sample with its captions."""
        sample, self._sample = self._sample, None
        if sample is None or self._shard is None:
            return
        try:
            # A caption replaces a.TXT too: no sample may have members that differ only in case.
            replaced = {fold(name) for name in sample.captions}
            copied = [data for name, data in members(self._reader.sample(sample.item)) if fold(name) not in replaced]
        except (ItemError, *DAMAGE) as error:
            note_left_out(self.left_out, sample.item, f"it can no longer be read: {error}")
            return
        for data in copied:
            self._shard.copy(data)
        for name, data in sorted(sample.captions.items()):
            self._shard.add(name, data)

    def _new_sample(self, item: Item, record: OutputRecord) -> Iterator[tuple[str, bytes]]:
        """Yield the members of a sample; none if the image was changed or deleted after it was captioned."""
        try:
            data = self._reader.data(item)
        except ItemError as error:
            note_left_out(self.left_out, item, f"it can no longer be read: {error}")
            return
        if record.sha256 is not None and hashlib.sha256(data).hexdigest() != record.sha256:
            note_left_out(self.left_out, item, "it was changed after it was captioned")
            return
        stem = f"{record.number:09d}"
        yield stem + image_suffix(item, data), data
        yield f"{stem}.json", portable_dumps(output_row(record, self._options)).encode()
        for name, text in caption_files(record).items():
            yield f"{stem}{name}{CAPTION}", text


class _Sample:
    """A sample of an input shard, with the captions of its images by member name."""

    def __init__(self, span: tuple[int, ...], item: Item) -> None:
        self.span, self.item = span, item
        self.captions: dict[str, bytes] = {}


class _Shard:
    """A tar file that is being written; its bytes depend only on what is added."""

    def __init__(self, partial: Path, name: str, origin: str | None, first: int) -> None:
        self.name, self.origin, self.first, self.count = name, origin, first, 0
        self._file: BinaryIO = create_own(partial)

    def add(self, name: str, data: bytes) -> None:
        """Add a member with no owner and no modification time."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        self.copy(header + data + bytes(-len(data) % BLOCK))

    def copy(self, data: bytes) -> None:
        """Add bytes that already have tar headers."""
        self._file.write(data)

    def close(self) -> None:
        """Write the end-of-archive blocks and close the file."""
        self._file.write(bytes(2 * BLOCK))
        self._file.write(bytes(-self._file.tell() % _TAR_RECORD))
        self._file.close()


def members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the names of the files in a section of a tar file, and their bytes including headers.

    Raises:
        tarfile.TarError: the bytes are not a section of a tar file.
    """
    with tarfile.open(fileobj=io.BytesIO(data + bytes(2 * BLOCK)), mode="r:") as archive:
        for info in archive:
            if info.isreg():
                yield info.name, data[info.offset : info.offset_data + -(-info.size // BLOCK) * BLOCK]
