"""ZIP archives as inputs: their images and videos, with captions and metadata of the same name."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

from ..state.keys import safe_key
from ..state.records import Item
from ..state.temp_table import TempTableError
from .archives import PlainArchive
from .base import Location, ReaderOptions
from .formats import suffix_of
from .item_builder import ItemBuilder
from .samples import Member, SampleIndex, SampleLister
from .zip_entries import ZipEntry, entries, read_entry

DAMAGE = (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error)


def zip_shard(location: Location, options: ReaderOptions, builder: ItemBuilder) -> Iterator[Item]:
    """Yield the images and videos of a ZIP archive; memory holds one sample, and a temporary file the names.

    If the archive is damaged, what its directory lists before the damage is listed, and one more Item fails.
    """
    stem = safe_key(location.prefix + os.path.basename(location.path)[: -len(suffix_of(location.path))])
    lister = SampleLister(
        location, stem, options, builder, lambda member: b"".join(read_entry(archive, **_entry_of(member)))
    )
    damage: str | None = None
    with SampleIndex() as index:
        try:
            archive = PlainArchive(location.path)
            for entry in entries(archive, archive.size):
                if not entry.name.endswith("/") and lister.takes(entry.name, entry.is_link):
                    index.add(_member(entry))
        except TempTableError:
            raise
        except DAMAGE as error:
            damage = str(getattr(error, "strerror", None) or error)
        yield from lister.all_items(index, damage)


def _member(entry: ZipEntry) -> Member:
    locator = {"kind": "zip", "header": entry.header, "packed": entry.packed, "size": entry.size}
    return Member(entry.name, entry.size, {**locator, "method": entry.method, "crc": entry.crc}, problem=entry.problem)


def _entry_of(member: Member) -> dict[str, int]:
    return {name: member.locator[name] for name in ("header", "packed", "size", "method", "crc")}
