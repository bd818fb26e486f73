"""Samples of an archive: its members grouped by name, wherever in the archive they are, as Items.

A program that packs `*.png *.txt` writes all images before all captions, so members of a sample need not be adjacent.
They are grouped with an index of the names in a temporary file; memory holds one sample.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ..state.existing_captions import MAX_CAPTION_BYTES, decode_caption
from ..state.keys import fold, safe_key, without_suffix
from ..state.records import Item, jsonable
from ..state.temp_table import TempTable
from .archive_metadata import MAX_METADATA_BYTES, MAX_METADATA_FILES, described_as, is_metadata, join_member
from .base import VIDEO_SUFFIXES, Location, ReaderOptions, is_media
from .formats import CONTAINERS, TABLES, kind_of_file
from .item_builder import ItemBuilder
from .patterns import matches
from .rows import CAPTION_COLUMNS
from .unlisted import names_a_suffix, why_no_member, why_not_media

MAX_STORED_TEXTS = 2**32  # bytes of text members in the temporary file; only those of compressed archives are stored
# WebDataset's rule: the sample's key ends at the first dot of the last path component.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_NUMBER_BYTES = 8


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: full name.
        size: size of its data in bytes.
        locator: what is needed to read it, JSON-able.
        span: offsets in the decompressed archive where its headers begin and its data ends, if it can be copied to
            another archive.
        problem: why it cannot be read, or "".
        text: its data, if it was stored because reading it again is costly.
    """

    name: str
    size: int
    locator: Mapping[str, Any]
    span: tuple[int, ...] = ()
    problem: str = ""
    text: bytes | None = None

    @property
    def suffix(self) -> str:
        """The extension in lower case."""
        return os.path.splitext(self.name)[1].lower()


@dataclass
class Sample:
    """Members whose names are equal up to the first dot, ignoring case and Unicode normalization.

    Attributes:
        members: in the order of the archive.
    """

    members: list[Member] = field(default_factory=list)


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into the sample's key and an extension; None if it does not belong to a sample."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found else None


class SampleIndex(AbstractContextManager["SampleIndex"]):
    """Groups the members of an archive; close it to release its temporary file.

    Members of a sample may be anywhere. A name that a sample already has begins another sample of the same key, as in
    an archive to which files were appended.

    Raises:
        TempTableError: the disk is full; every method raises it too.
    """

    def __init__(self) -> None:
        self._samples = TempTable("number INTEGER")  # of the sample that a key or a name in a sample belongs to
        self._members = TempTable("member BLOB", "text BLOB")
        self._count = self._sequence = self.stored = 0

    def __exit__(self, *exception: object) -> None:
        self._samples.close()
        self._members.close()

    def add(self, member: Member) -> None:
        """Add the next member of the archive; its name must belong to a sample."""
        split = split_name(member.name)
        key = b"\1" + _encode(fold(split[0] if split else member.name))
        row = self._samples.get(key)
        number = self._next_sample(key) if row is None else row[0]
        if not self._samples.add(b"\2" + _bytes(number) + _encode(member.name), number):
            number = self._next_sample(key)
            self._samples.add(b"\2" + _bytes(number) + _encode(member.name), number)
        values = (member.name, member.size, member.locator, member.span, member.problem)
        self.stored += len(member.text or b"")
        if self.stored > MAX_STORED_TEXTS:
            raise ValueError(
                f"its text files have more than {MAX_STORED_TEXTS:,} bytes, which is too much for captions"
            )
        self._members.put(_bytes(number) + _bytes(self._sequence), json.dumps(values).encode(), member.text)
        self._sequence += 1

    def has(self, name: str) -> bool:
        """Return whether a member of this name was added."""
        split = split_name(name)
        row = self._samples.get(b"\1" + _encode(fold(split[0] if split else name)))
        return row is not None and self._samples.get(b"\2" + _bytes(row[0]) + _encode(name)) is not None

    def samples(self) -> Iterator[Sample]:
        """Yield the samples in the order of their first members."""
        current, sample = b"", Sample()
        for key, values, text in self._members.rows():
            if key[:_NUMBER_BYTES] != current:
                if sample.members:
                    yield sample
                current, sample = key[:_NUMBER_BYTES], Sample()
            name, size, locator, span, problem = json.loads(values)
            sample.members.append(Member(name, size, locator, tuple(span), problem, text))
        if sample.members:
            yield sample

    def _next_sample(self, key: bytes) -> int:
        self._samples.put(key, self._count)
        self._count += 1
        return self._count - 1


class SampleLister:
    """Decides which members of an archive are listed, and builds the Items of its samples.

    Args:
        location: of the archive.
        stem: prefix of the keys.
        options: how inputs are listed; `exclude` applies to members, and of `include` the patterns that name an
            extension of images, since the others select archives in a folder.
        builder: builds the Items, and counts what is skipped.
        read: returns the data of a member.
    """

    def __init__(
        self,
        location: Location,
        stem: str,
        options: ReaderOptions,
        builder: ItemBuilder,
        read: Callable[[Member], bytes],
    ) -> None:
        self._location, self._stem, self._options, self._builder, self._read = location, stem, options, builder, read
        patterns = (*options.include, *location.include)
        self._include = [one for one in patterns if names_a_suffix(one) and kind_of_file(one) in (None, "file")]
        self._captions = tuple(suffix.lower() for suffix in options.caption_suffixes)
        self._has_metadata = False
        self._joined: set[str] = set()  # names of the metadata files that describe the images

    def takes(self, name: str, is_link: bool = False) -> bool:
        """Return whether a member is added to the index; if not, it is counted as skipped unless it is excluded."""
        path = name.removeprefix("./")
        if any(matches(part, pattern) for pattern in self._options.exclude for part in _prefixes(path)):
            return False
        reason = why_no_member(path, self._options.hidden)
        if reason is None and is_link:
            reason = "link" if is_media(path) else "other"
        if reason is None and split_name(path) is None and not self._is_listed(path):
            reason = why_not_media(path)
        if reason is not None:
            self._skip(reason, name)
        self._has_metadata |= reason is None and is_metadata(path)
        return reason is None

    def is_text(self, member: Member) -> bool:
        """Return whether a member can be a caption or the metadata of a sample."""
        return member.suffix in (*self._captions, ".json") and 0 <= member.size <= MAX_CAPTION_BYTES

    def is_read_early(self, member: Member) -> bool:
        """Return whether a member is read while the archive is listed, perhaps in another order."""
        return self.is_text(member) or (is_metadata(member.name) and 0 <= member.size <= MAX_METADATA_BYTES)

    def all_items(self, index: SampleIndex, damage: str | None) -> Iterator[Item]:
        """Yield the images and videos of all samples; one more Item fails if the archive is damaged or has none.

        Args:
            index: what was found in the archive.
            damage: why the archive could not be read to its end, or None.
        """
        count = 0
        if self._has_metadata:
            self._join_metadata(index)
        for sample in index.samples():
            for item in self.items(sample):
                yield item
                count += 1
        reason = "the archive has no images, such as 000123.jpg"
        if damage is not None:
            reason = f"the archive is damaged after {count} images: {damage}"
        if damage is not None or not count:
            yield self._builder.build_failure(f"{self._stem}~end", self._location.name, reason)

    def _join_metadata(self, index: SampleIndex) -> None:
        """Read the metadata files, one of a directory; what a deeper one says replaces what those above it say."""
        members = [member for sample in index.samples() for member in sample.members if is_metadata(member.name)]
        directories: set[str] = set()
        remaining = MAX_METADATA_BYTES
        for member in sorted(members, key=lambda member: (member.name.count("/"), member.name))[:MAX_METADATA_FILES]:
            directory = member.name.rpartition("/")[0]
            if directory in directories or member.problem or not 0 <= member.size <= remaining:
                continue
            remaining -= member.size
            try:
                data = self._data(member)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):  # it is then named as a table
                continue
            if join_member(member.name, data, self._location, self._options, self._builder, index.has):
                directories.add(directory)
                self._joined.add(member.name)

    def items(self, sample: Sample) -> Iterator[Item]:
        """Yield the images and videos of a sample."""
        listed = [member for member in sample.members if self._is_listed(member.name)]
        keys = dict.fromkeys(_key(member.name) for member in listed)
        if not listed:
            self._note_unused(sample.members)
            return
        rest = {member.name for member in sample.members if len(keys) > 1 and _key(member.name) not in keys}
        self._note_unused([member for member in sample.members if member.name in rest], "ambiguous")
        for key in keys:  # several only if the archive has A.jpg and a.jpg
            members = [
                member
                for member in sample.members
                if member.name not in rest and (len(keys) == 1 or _key(member.name) == key)
            ]
            yield from self._items(key, members, [member for member in listed if _key(member.name) == key])

    def _first_of_each_name(self, listed: list[Member]) -> list[Member]:
        """Return the images of a sample without those that have an earlier one's name in another format."""
        first: dict[str, Member] = {}
        for member in listed:
            if first.setdefault(fold(without_suffix(member.name)), member) is not member:
                self._skip("same_name", member.name)
        return list(first.values())

    def _items(self, key: str, members: list[Member], listed: list[Member]) -> Iterator[Item]:
        if self._options.same_name == "first":
            listed = self._first_of_each_name(listed)
        stem_counts = Counter(fold(without_suffix(member.name)) for member in listed)
        texts = {fold(member.name): member for member in members if self.is_text(member)}
        sample_columns = self._columns(key, listed, texts)
        used: set[str] = set()  # folded names of caption files that belong to one image
        for member in listed:
            stem = without_suffix(member.name)
            unique = stem if stem_counts[fold(stem)] == 1 else member.name
            name = key if len(listed) == 1 else unique
            candidates = dict.fromkeys((fold(name), fold(unique)))
            used.update(candidate + suffix for candidate in candidates for suffix in self._captions)
            described = self._builder.file_columns.get(described_as(self._location, member.name))
            columns = {**described.columns, **sample_columns}
            caption, caption_name = self._caption(candidates, columns, texts)
            full_key = f"{self._stem}/{safe_key(member.name)}"
            source = f"{self._location.name}::{member.name}"
            if member.problem:
                yield self._builder.build_failure(full_key, source, member.problem, columns)
                continue
            # The caption is written under the name of the existing one, so that it replaces that.
            written = name if caption_name is None else without_suffix(caption_name)
            locator = {**member.locator, "path": self._location.path, "member": member.name, "name": written}
            if member.suffix in VIDEO_SUFFIXES:
                locator["video"] = {"mode": self._options.frame_mode, "frames": self._options.frames}
            if member.span:
                locator["sample"] = _merged(one.span for one in members)
            own_key = f"{self._stem}/{safe_key(name)}"
            yield self._builder.build(
                own_key, source, locator, full_key=full_key, columns=columns, caption=caption or described.caption
            )
        unused = [one for one in members if one not in listed and fold(one.name) not in used and not _is_field(one)]
        self._note_unused(unused, "ambiguous" if len(listed) > 1 else "caption")

    def _is_listed(self, name: str) -> bool:
        if self._include:
            path = name.removeprefix("./")
            return any(matches(path, pattern) for pattern in self._include)
        return is_media(name)

    def _caption(
        self, names: Mapping[str, None], columns: Mapping[str, Any], texts: Mapping[str, Member]
    ) -> tuple[str | None, str | None]:
        """Return the existing caption, and its member's name if it has one: from a text member named like the image or
        the sample, else from the sample's JSON member."""
        for suffix in self._captions:
            for name in names:
                member = texts.get(name + suffix)
                caption = None if member is None else decode_caption(self._data(member))
                if caption and member is not None:
                    return caption, member.name
        value = columns.get(self._options.caption_column or CAPTION_COLUMNS[0])
        return (value, None) if isinstance(value, str) else (None, None)

    def _columns(self, key: str, listed: list[Member], texts: Mapping[str, Member]) -> dict[str, Any]:
        names = (key, without_suffix(listed[0].name)) if len(listed) == 1 else (key,)
        member = next((texts[name] for name in (fold(one) + ".json" for one in names) if name in texts), None)
        try:
            values = jsonable(json.loads(self._data(member).decode("utf-8-sig"))) if member is not None else {}
        except (ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    def _data(self, member: Member) -> bytes:
        return self._read(member) if member.text is None else member.text

    def _note_unused(self, members: list[Member], caption_reason: str = "caption") -> None:
        """Count members that belong to no image."""
        for member in members:
            kind = kind_of_file(member.name)
            if member.name in self._joined:
                continue
            if member.suffix in self._captions:
                self._skip(caption_reason, member.name)
            elif is_media(member.name):
                continue  # an include pattern leaves it out
            elif kind in CONTAINERS:
                self._skip("nested", member.name)
            elif kind in TABLES:
                self._skip("table", member.name)
            else:
                self._skip(why_not_media(member.name), member.name)

    def _skip(self, reason: str, name: str) -> None:
        self._builder.skipped.note(reason, f"{self._location.name}::{name}")


def _is_field(member: Member) -> bool:
    """Return whether a member of a sample is one of its fields, such as its metadata or class, and no other image."""
    suffix = member.suffix
    return suffix not in (".txt", ".caption") and why_not_media(member.name) not in ("format", "archive")


def _key(name: str) -> str:
    split = split_name(name)
    return split[0] if split else name


def _prefixes(path: str) -> Iterator[str]:
    """Yield the directories that contain a member, and the member."""
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])


def _merged(spans: Iterator[tuple[int, ...]]) -> list[int]:
    """Return spans as a flat list of begins and ends; adjacent ones are one span."""
    merged: list[int] = []
    for begin, end in sorted(span for span in spans if span):  # type: ignore[misc]
        if merged and merged[-1] == begin:
            merged[-1] = end
        else:
            merged += [begin, end]
    return merged


def _bytes(number: int) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
