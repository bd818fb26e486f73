"""Tar archives as inputs, WebDataset shards among them."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace

from ..state.keys import safe_key
from ..state.records import Item
from ..state.temp_table import TempTableError
from .archives import Archive, CompressedArchive, open_archive
from .base import Location, ReaderOptions
from .formats import suffix_of
from .item_builder import ItemBuilder
from .samples import Member, SampleIndex, SampleLister

MAX_HEADER_BYTES = 2**20  # of an extended header (types x, g, L, K), which tarfile reads at once
BLOCK = 512  # tar files consist of blocks of so many bytes
# What reading a damaged archive can raise.
DAMAGE = (
    *(tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError),
    *(RecursionError, MemoryError, LookupError),  # extended headers behind each other, and contradictory ones
)


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


def tar_shard(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the images and videos of a tar archive; memory holds one sample, and a temporary file the names.

    If the archive is damaged or truncated, what is before the damage is listed, and one more Item fails with the
    reason. A compressed archive is read in order; each process that reads it decompresses it from its start.
    """
    stem = safe_key(location.prefix + os.path.basename(location.path)[: -len(suffix_of(location.path))])
    lister = SampleLister(
        location, stem, options, builder, lambda member: archive.read(member.locator["offset"], member.size)
    )
    damage: str | None = None
    with SampleIndex() as index:
        try:
            archive = open_archive(location.path)
            for member in _members(archive, lister):
                index.add(member)
        except TempTableError:
            raise
        except DAMAGE as error:
            damage = str(error)
        yield from lister.all_items(index, damage)


def _members(archive: Archive, lister: SampleLister) -> Iterator[Member]:
    """Yield the members that belong to samples."""
    with tarfile.open(fileobj=_ArchiveFile(archive), mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every member in memory
            if tar.offset <= info.offset:  # it would be read again and again
                raise tarfile.ReadError(f"the member at byte {info.offset:,} has a negative size")
            is_link = info.islnk() or info.issym()
            if (info.isreg() or is_link) and lister.takes(info.name, is_link):
                yield _member(info, archive, lister)
        # tarfile takes a damaged header for the end of the archive, which is a block of zeros, or no more data.
        if archive.read(tar.offset, BLOCK).strip(b"\0"):
            raise tarfile.ReadError(f"there is no header at byte {tar.offset:,}")


def _member(info: tarfile.TarInfo, archive: Archive, lister: SampleLister) -> Member:
    end = info.offset_data + -(-info.size // BLOCK) * BLOCK
    locator = {"kind": "tar", "offset": info.offset_data, "size": info.size}
    if info.issparse():
        problem = "the archive stores it as a sparse file, which is not supported"
        return Member(info.name, info.size, locator, problem=problem)
    member = Member(info.name, info.size, locator, (info.offset, end))
    if isinstance(archive, CompressedArchive) and lister.is_read_early(
        member
    ):  # reading it later would start from the front
        return replace(member, text=archive.read(info.offset_data, info.size))
    return member
