"""WebDataset shards: tar files in which neighbours of the same name, up to the first dot, are one sample."""

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
from ..state.records import jsonable
from .archives import Archive, open_archive
from .base import Found, Place, ReaderOptions, failure
from .kinds import suffix_of
from .rows import CAPTION_COLUMNS

BLOCK = 512
DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError)
_TEXTS = (".txt", ".caption", ".json")
# As WebDataset splits names: the key goes to the first dot of the last part.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: in full.
        extension: what follows the first dot of its last part.
        header: where it begins, extended headers included.
        offset, size: of its data.
    """

    name: str
    extension: str
    header: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where the next one may begin."""
        return self.offset + -(-self.size // BLOCK) * BLOCK


@dataclass
class _Sample:
    key: str
    members: list[Member] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)  # small members that say something, by name


class _File(io.RawIOBase):
    """An archive as a file for tarfile."""

    def __init__(self, archive: Archive) -> None:
        self._archive, self._place = archive, 0

    def read(self, size: int = -1) -> bytes:
        data = self._archive.read(self._place, size)
        self._place += len(data)
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        self._place = place + (self._place if whence == 1 else 0)
        return self._place

    def tell(self) -> int:
        return self._place


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into the sample's key and an extension; None for one that belongs to no sample."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found else None


def tar_shard(place: Place, options: ReaderOptions) -> Iterator[Found]:
    """Yield the pictures of a shard; memory holds one sample.

    Where the archive is damaged or ends early, what comes before is listed, and one more input fails with the reason.
    A compressed archive is read in order; each process that reads it decompresses it from its beginning.
    """
    stem = safe_key(place.prefix + os.path.basename(place.path)[: -len(suffix_of(place.path))])
    count = 0
    try:
        for sample in _samples(open_archive(place.path)):
            for found in _pictures(sample, stem, place, options):
                yield found
                count += 1
    except DAMAGE as error:
        yield failure(f"{stem}~end", place.name, f"the archive is damaged behind {count} pictures: {error}")
    else:
        if not count:
            yield failure(f"{stem}~end", place.name, "there are no pictures in it, such as 000123.jpg")


def _samples(archive: Archive) -> Iterator[_Sample]:
    """Yield neighbours of the same key."""
    sample = _Sample("")
    with tarfile.open(fileobj=_File(archive), mode="r:") as tar:
        try:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
                split = split_name(info.name)
                if split is None or not info.isreg():
                    continue
                if split[0] != sample.key:
                    yield sample
                    sample = _Sample(split[0])
                sparse = -1 if info.issparse() else info.size
                member = Member(info.name, split[1], info.offset, info.offset_data, sparse)
                sample.members.append(member)
                if _suffix(info.name) in _TEXTS and 0 <= info.size <= MAX_CAPTION_BYTES:
                    sample.texts[info.name] = archive.read(info.offset_data, info.size)
        except DAMAGE:
            yield sample
            raise
        yield sample
        # tarfile takes a damaged header for the end, which in truth is zeros, or nothing.
        if archive.read(tar.offset, BLOCK).strip(b"\0"):
            raise tarfile.ReadError(f"there is no header at byte {tar.offset:,}")


def _pictures(sample: _Sample, stem: str, place: Place, options: ReaderOptions) -> Iterator[Found]:
    pictures = [member for member in sample.members if _suffix(member.name) in IMAGE_SUFFIXES]
    stems = Counter(fold(without_suffix(member.name)) for member in pictures)
    columns = _columns(sample)
    for member in pictures:
        short = without_suffix(member.name)
        name = sample.key if len(pictures) == 1 else short if stems[fold(short)] == 1 else member.name
        texts = (sample.texts.get(name + suffix) for suffix in options.caption_suffixes)
        caption = next((text for data in texts if data and (text := decode_caption(data))), None)
        if caption is None:
            value = columns.get(options.caption_column or CAPTION_COLUMNS[0])
            caption = value if isinstance(value, str) else None
        locator = {"kind": "tar", "path": place.path, "offset": member.offset, "size": member.size}
        locator |= {"member": member.name, "name": name, "sample": [sample.members[0].header, sample.members[-1].end]}
        source, full_key = f"{place.name}::{member.name}", f"{stem}/{safe_key(member.name)}"
        if member.size < 0:
            yield failure(full_key, source, "the archive holds it as a sparse file, which is not read", columns)
        else:
            yield Found(f"{stem}/{safe_key(name)}", full_key, source, locator, columns, caption)


def _columns(sample: _Sample) -> dict[str, Any]:
    try:
        values = jsonable(json.loads(sample.texts.get(f"{sample.key}.json", b"{}").decode("utf-8-sig")))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
