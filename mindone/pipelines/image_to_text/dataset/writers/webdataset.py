"""WebDataset shards: samples of input shards with their captions added, or new samples from other pictures."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..readers.base import ItemError
from ..readers.kinds import suffix_of
from ..readers.reader import Reader
from ..readers.tar_shard import BLOCK, DAMAGE
from ..state.records import Item, Record, portable_dumps
from .base import Mark, Target, note
from .parts import Parts
from .rows import caption_text, output_row

SUFFIX, CAPTION = ".tar", ".txt"
_RECORD = 20 * BLOCK  # tar files are filled up to a multiple of it
# How files of pictures begin, for those that have no name.
_MAGIC = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"RIFF", ".webp"))


class WebDatasetWriter:
    """Writes shards one after another; a shard appears when it is whole, and is begun anew after a crash.

    A shard of the input becomes a shard of the same name: its samples' members are copied byte for byte, and a member
    with the caption is added, in place of one of that name. Other inputs become samples `<number>.<ext>`, `.json` (the
    record) and `.txt`, in shards of `shard_size`. Inputs that failed are left out.

    Raises:
        ValueError: the directory has shards of another job, those of the input among them.
    """

    def __init__(self, target: Target) -> None:
        self._size, self._seconds = target.options.shard_size, target.options.seconds
        self._parts = Parts(target.directory("shards"), f"*{SUFFIX}", target)
        mark = target.mark or {}
        self.start = self._next = mark.get("records", 0) if self._parts.names else 0
        self._numbered = mark.get("numbered", 0) if self._parts.names else 0
        self.left_out: list[str] = []
        self._reader = Reader()
        self._shard: _Shard | None = None
        self._sample: _Sample | None = None

    def write(self, item: Item, record: Record) -> None:
        """Add a sample, or a caption to one that has several pictures."""
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
        self._sample.captions[item.locator["name"] + CAPTION] = caption_text(record)

    def flush(self) -> Mark:
        """Return which shards are whole; the one that is being written is not."""
        first = self._next if self._shard is None else self._shard.first
        return self._parts.mark(first, numbered=self._numbered)

    def finish(self) -> Mark:
        """Publish the last shard."""
        self._end_shard()
        if not self._parts.finished:
            self._parts.finish()
        return self.flush()

    def _shard_for(self, origin: str | None, number: int) -> _Shard:
        """Return the shard that takes the next sample; an input shard has one of its own."""
        shard = self._shard
        if shard is not None and (shard.origin != origin or (origin is None and shard.count >= self._size)):
            self._end_shard()
            shard = None
        if shard is None:
            name = self._name(origin)
            shard = self._shard = _Shard(self._parts.partial(name), name, origin, number)
        shard.count += 1
        return shard

    def _name(self, origin: str | None) -> str:
        stem = f"shard-{self._numbered:05d}" if origin is None else Path(origin).name[: -len(suffix_of(origin))]
        name, taken = stem, {one.lower() for one in self._parts.names}
        more = 2
        while f"{name}{SUFFIX}".lower() in taken:
            name, more = f"{stem}~{more}", more + 1
        return name + SUFFIX

    def _end_shard(self) -> None:
        self._end_sample()
        if self._shard is not None:
            self._shard.close()
            self._parts.publish(self._shard.name)
            self._numbered += self._shard.origin is None
            self._shard = None

    def _end_sample(self) -> None:
        """Copy the sample that is complete, with its captions."""
        sample, self._sample = self._sample, None
        if sample is None or self._shard is None:
            return
        try:
            kept = [data for name, data in members(self._reader.sample(sample.item)) if name not in sample.captions]
        except (ItemError, *DAMAGE) as error:
            note(self.left_out, sample.item, f"it can no longer be read: {error}")
            return
        for data in kept:
            self._shard.copy(data)
        for name, data in sorted(sample.captions.items()):
            self._shard.add(name, data)

    def _new_sample(self, item: Item, record: Record) -> Iterator[tuple[str, bytes]]:
        """Yield the members of a sample; nothing for a picture that is no longer what was captioned."""
        try:
            data = self._reader.data(item)
        except ItemError as error:
            note(self.left_out, item, f"it can no longer be read: {error}")
            return
        if record.sha256 is not None and hashlib.sha256(data).hexdigest() != record.sha256:
            note(self.left_out, item, "it was changed after it was captioned")
            return
        stem = f"{record.number:09d}"
        yield stem + _extension(item, data), data
        yield f"{stem}.json", portable_dumps(output_row(record, self._seconds)).encode()
        yield stem + CAPTION, caption_text(record)


class _Sample:
    """A sample of an input shard, and its pictures' captions by the name of their member."""

    def __init__(self, span: tuple[int, ...], item: Item) -> None:
        self.span, self.item = span, item
        self.captions: dict[str, bytes] = {}


class _Shard:
    """A tar file that is being written; its bytes follow from what is added."""

    def __init__(self, partial: Path, name: str, origin: str | None, first: int) -> None:
        self.name, self.origin, self.first, self.count = name, origin, first, 0
        self._file: BinaryIO = partial.open("wb")

    def add(self, name: str, data: bytes) -> None:
        """Add a member of nobody's, without a time."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        self.copy(header + data + bytes(-len(data) % BLOCK))

    def copy(self, data: bytes) -> None:
        """Add bytes that are members already."""
        self._file.write(data)

    def close(self) -> None:
        """Write the end."""
        self._file.write(bytes(2 * BLOCK))
        self._file.write(bytes(-self._file.tell() % _RECORD))
        self._file.close()


def members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the names of the files in a piece of a tar file, and their bytes with all headers.

    Raises:
        tarfile.TarError: it is no such piece.
    """
    with tarfile.open(fileobj=io.BytesIO(data + bytes(2 * BLOCK)), mode="r:") as archive:
        for info in archive:
            if info.isreg():
                yield info.name, data[info.offset : info.offset_data + -(-info.size // BLOCK) * BLOCK]


def _extension(item: Item, data: bytes) -> str:
    """Return what a picture's file ends in: as its name does, or else as its bytes begin."""
    suffix = Path(item.path).suffix.lower() if item.path else ""
    return suffix or next((suffix for mark, suffix in _MAGIC if data.startswith(mark)), ".jpg")
