"""WebDataset shards: tar files in which consecutive members with the same name, up to the first dot, are one sample."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mindone.models.share4v.processing.image_loading import IMAGE_SUFFIXES

from ..state.existing_captions import MAX_CAPTION_BYTES, decode_caption
from ..state.keys import fold, safe_key, without_suffix
from ..state.records import Item, jsonable
from .archives import Archive, open_archive
from .base import Location, ReaderOptions
from .formats import suffix_of
from .item_builder import ItemBuilder
from .rows import CAPTION_COLUMNS

MAX_HEADER_BYTES = 2**20  # of an extended header (types x, g, L, K), which tarfile reads at once
BLOCK = 512  # tar files consist of blocks of so many bytes
# What reading a damaged archive can raise.
DAMAGE = (
    *(tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError),
    *(RecursionError, MemoryError, LookupError),  # extended headers behind each other, and contradictory ones
)
_TEXT_SUFFIXES = (".txt", ".caption", ".json")
# WebDataset's rule: the sample's key ends at the first dot of the last path component.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """A file in an archive; positions are byte offsets in the decompressed archive.

    Attributes:
        name: full name.
        extension: the part of the name after the first dot of its last component.
        header: offset of its first header, including extended headers.
        offset, size: offset and size of its data; the size of a sparse file, which is not supported, is -1.
    """

    name: str
    extension: str
    header: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Offset of the next member's header."""
        return self.offset + -(-self.size // BLOCK) * BLOCK


@dataclass
class _Sample:
    key: str
    members: list[Member] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)  # name -> data of captions and of JSON members


class _ArchiveFile(io.RawIOBase):
    """An Archive as a file object for tarfile."""

    def __init__(self, archive: Archive) -> None:
        self._archive, self._position = archive, 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(
                f"the extended header before byte {self._position:,} has {size:,} bytes; at most {MAX_HEADER_BYTES:,} "
                "are read"
            )
        data = self._archive.read(self._position, size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (self._position if whence == 1 else 0)
        return self._position

    def tell(self) -> int:
        return self._position


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into the sample's key and an extension; None if it does not belong to a sample."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found else None


def tar_shard(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the images of a shard; memory holds one sample.

    If the archive is damaged or truncated, the images before the damage are listed, and one more Item fails with the
    reason. A compressed archive is read in order; each process that reads it decompresses it from its start.
    """
    stem = safe_key(location.prefix + os.path.basename(location.path)[: -len(suffix_of(location.path))])
    count = 0
    try:
        for sample in _samples(open_archive(location.path)):
            for item in _images(sample, stem, location, options, builder):
                yield item
                count += 1
    except DAMAGE as error:
        yield builder.build_failure(
            f"{stem}~end", location.name, f"the archive is damaged after {count} images: {error}"
        )
    else:
        if not count:
            yield builder.build_failure(f"{stem}~end", location.name, "the archive has no images, such as 000123.jpg")


def _samples(archive: Archive) -> Iterator[_Sample]:
    """Yield runs of consecutive members with the same key."""
    sample = _Sample("")
    with tarfile.open(fileobj=_ArchiveFile(archive), mode="r:") as tar:
        try:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every member in memory
                if tar.offset <= info.offset:  # it would be read again and again
                    raise tarfile.ReadError(f"the member at byte {info.offset:,} has a negative size")
                split = split_name(info.name)
                if split is None or not info.isreg():
                    continue
                if split[0] != sample.key:
                    yield sample
                    sample = _Sample(split[0])
                size = -1 if info.issparse() else info.size
                sample.members.append(Member(info.name, split[1], info.offset, info.offset_data, size))
                if _suffix(info.name) in _TEXT_SUFFIXES and 0 <= info.size <= MAX_CAPTION_BYTES:
                    sample.texts[info.name] = archive.read(info.offset_data, info.size)
        except DAMAGE:
            yield sample
            raise
        yield sample
        # tarfile takes a damaged header for the end of the archive, which is a block of zeros, or no more data.
        if archive.read(tar.offset, BLOCK).strip(b"\0"):
            raise tarfile.ReadError(f"there is no header at byte {tar.offset:,}")


def _images(
    sample: _Sample, stem: str, location: Location, options: ReaderOptions, builder: ItemBuilder
) -> Iterator[Item]:
    images = [member for member in sample.members if _suffix(member.name) in IMAGE_SUFFIXES]
    stem_counts = Counter(fold(without_suffix(member.name)) for member in images)
    columns = _columns(sample)
    for member in images:
        member_stem = without_suffix(member.name)
        unique_name = member_stem if stem_counts[fold(member_stem)] == 1 else member.name
        name = sample.key if len(images) == 1 else unique_name
        source, full_key = f"{location.name}::{member.name}", f"{stem}/{safe_key(member.name)}"
        caption = _caption(sample, name, columns, options)
        if member.size < 0:
            reason = "the archive stores it as a sparse file, which is not supported"
            yield builder.build_failure(full_key, source, reason, columns)
            continue
        locator = {"kind": "tar", "path": location.path, "offset": member.offset, "size": member.size}
        locator |= {"member": member.name, "name": name, "sample": [sample.members[0].header, sample.members[-1].end]}
        key = f"{stem}/{safe_key(name)}"
        yield builder.build(key, source, locator, full_key=full_key, columns=columns, caption=caption)


def _caption(sample: _Sample, name: str, columns: dict[str, Any], options: ReaderOptions) -> str | None:
    """Return the existing caption: from a text member with the image's name, else from the sample's JSON member."""
    for suffix in options.caption_suffixes:
        data = sample.texts.get(name + suffix)
        caption = decode_caption(data) if data else None
        if caption:
            return caption
    value = columns.get(options.caption_column or CAPTION_COLUMNS[0])
    return value if isinstance(value, str) else None


def _columns(sample: _Sample) -> dict[str, Any]:
    try:
        values = jsonable(json.loads(sample.texts.get(f"{sample.key}.json", b"{}").decode("utf-8-sig")))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
