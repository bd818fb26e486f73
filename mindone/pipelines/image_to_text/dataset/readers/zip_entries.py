"""ZIP archives: the entries of the directory at the end, one at a time, and the data of one entry.

`zipfile` keeps the whole directory in memory (half a gigabyte for a million images), in every process that reads one
image. Here an entry is located by the offset of its header, like a member of a tar file.
"""

from __future__ import annotations

import bz2
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from stat import S_ISLNK
from typing import Any, Protocol

from .archives import Archive

_END, _END64, _LOCATOR64, _ENTRY, _HEADER = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_END_FIELDS = struct.Struct("<4s4H2LH")
_END64_FIELDS = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_FIELDS = struct.Struct("<4sLQL")
_ENTRY_FIELDS = struct.Struct("<4s6H3L5H2L")
_HEADER_FIELDS = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 0xFFFF
_CHUNK = 2**18
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075  # identifiers of extra fields
_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags
_METHODS = {0: "stored", 8: "deflate", 12: "bzip2"}
_UNIX = 3


class ZipError(ValueError):
    """A ZIP archive, or one of its entries, is damaged or of a kind that is not read."""


@dataclass(frozen=True)
class ZipEntry:
    """One entry of an archive's directory.

    Attributes:
        name: path in the archive; bytes that are no text are lone surrogates, as in Python's file names.
        header: offset of the entry's header in the file.
        packed, size: size of the data in the archive and after decompression.
        method: compression method.
        crc: CRC-32 of the data.
        is_link: whether it is a symbolic link.
        problem: why it cannot be read, or "".
    """

    name: str
    header: int
    packed: int
    size: int
    method: int
    crc: int
    is_link: bool = False
    problem: str = ""


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class _Stored:
    """Data that is not compressed; it is passed in chunks that are never longer than what is taken."""

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return data


_DECOMPRESSORS: dict[int, Callable[[], Any]] = {
    0: _Stored,
    8: lambda: zlib.decompressobj(-zlib.MAX_WBITS),
    12: bz2.BZ2Decompressor,
}


def entries(archive: Archive, size: int) -> Iterator[ZipEntry]:
    """Yield the entries in the order of the directory; memory holds one of them.

    Args:
        archive: the file.
        size: its size in bytes.

    Raises:
        ZipError: the directory is missing or damaged, entries overlap, or it is one of several files.
        OSError: the file cannot be read.
    """
    position, length, shift, expected = _find_directory(archive, size)
    end, count, packed = position + length, 0, 0
    while position < end:
        data = archive.read(position, _ENTRY_FIELDS.size)
        if len(data) < _ENTRY_FIELDS.size or not data.startswith(_ENTRY):
            raise ZipError(f"its directory is damaged at byte {position:,}")
        fields = _ENTRY_FIELDS.unpack(data)
        name_size, extra_size, comment_size = fields[10:13]
        rest = archive.read(position + _ENTRY_FIELDS.size, name_size + extra_size)
        if len(rest) < name_size + extra_size:
            raise ZipError(f"its directory is damaged at byte {position:,}")
        entry = _entry(fields, rest[:name_size], rest[name_size:], shift)
        packed += entry.packed
        if packed > size:  # a bomb has many entries that share their data
            raise ZipError("its entries overlap: together they are larger than the archive")
        yield entry
        count += 1
        position += _ENTRY_FIELDS.size + name_size + extra_size + comment_size
    if expected is not None and count != expected:
        raise ZipError(f"its directory has {count:,} entries, but states {expected:,}")


def read_entry(archive: Archive, header: int, packed: int, size: int, method: int, crc: int) -> Iterator[bytes]:
    """Yield the data of an entry in chunks.

    Args:
        archive: the file.
        header, packed, size, method, crc: as in ZipEntry.

    Raises:
        ZipError: the data is damaged, has another size than the directory states, or the file was changed.
        zlib.error, OSError: it cannot be decompressed or read.
    """
    data = archive.read(header, _HEADER_FIELDS.size)
    if len(data) < _HEADER_FIELDS.size or not data.startswith(_HEADER):
        raise ZipError("the archive was changed after the inputs were listed, or is damaged")
    fields = _HEADER_FIELDS.unpack(data)
    if fields[3] != method:
        raise ZipError("the archive was changed after the inputs were listed, or is damaged")
    position = header + _HEADER_FIELDS.size + fields[9] + fields[10]
    end, read, checksum = position + packed, 0, 0
    decompressor: _Decompressor = _DECOMPRESSORS[method]()
    pending = b""
    while read < size:
        if not pending and position < end:
            pending = archive.read(position, min(_CHUNK, end - position))
            position += len(pending)
            if not pending:
                raise ZipError("the archive is truncated")
        chunk = decompressor.decompress(pending, min(_CHUNK, size - read))
        pending = getattr(decompressor, "unconsumed_tail", b"")
        if not chunk and not pending and position >= end:
            raise ZipError(f"it has {read:,} bytes, but the archive states {size:,}")
        read += len(chunk)
        checksum = zlib.crc32(chunk, checksum)
        yield chunk
    if checksum != crc:
        raise ZipError("it is damaged: its checksum is wrong")


def _find_directory(archive: Archive, size: int) -> tuple[int, int, int, int | None]:
    """Return the directory's offset and length, what stated offsets lack (data before the archive), and its entries."""
    start = max(0, size - _END_FIELDS.size - _MAX_COMMENT)
    tail = archive.read(start, size - start)
    found = tail.rfind(_END)
    while found >= 0:
        if len(tail) - found >= _END_FIELDS.size:
            fields = _END_FIELDS.unpack_from(tail, found)
            if found + _END_FIELDS.size + fields[7] <= len(tail):
                break
        found = tail.rfind(_END, 0, found)
    if found < 0:
        raise ZipError("it is truncated, or no ZIP archive: it has no directory at its end")
    end = start + found
    _, disk, first_disk, _, count, length, offset, _ = fields
    expected: int | None = count
    # The record of a large archive may be present even if the numbers fit into the smaller one.
    locator = archive.read(max(0, end - _LOCATOR_FIELDS.size), _LOCATOR_FIELDS.size)
    if len(locator) == _LOCATOR_FIELDS.size and locator.startswith(_LOCATOR64):
        stated = _LOCATOR_FIELDS.unpack(locator)[2]
        end, record = _find_record64(archive, stated, end - _LOCATOR_FIELDS.size)
        _, _, _, _, disk, first_disk, _, expected, length, offset = _END64_FIELDS.unpack(record)
    if disk or first_disk:
        raise ZipError(
            "it is one of several files of a split archive: join them with `zip -s 0 in.zip --out whole.zip`"
        )
    position = end - length
    if position < 0 or position < offset:
        raise ZipError("its directory is damaged: it does not lie where the archive states")
    return position, length, position - offset, expected


def _find_record64(archive: Archive, stated: int, locator: int) -> tuple[int, bytes]:
    for offset in (locator - _END64_FIELDS.size, stated):
        if offset >= 0:
            record = archive.read(offset, _END64_FIELDS.size)
            if len(record) == _END64_FIELDS.size and record.startswith(_END64):
                return offset, record
    raise ZipError("its directory is damaged: the record of a large archive is missing")


def _entry(fields: tuple[Any, ...], name: bytes, extra: bytes, shift: int) -> ZipEntry:
    made_by, _, flags, method = fields[1:5]
    crc, packed, size = fields[7:10]
    attributes, header = fields[15], fields[16]
    text = _decode(name, flags)
    for identifier, data in _extra_fields(extra):
        if identifier == _ZIP64:
            wide = [(data[at : at + 8]) for at in range(0, len(data) - 7, 8)]
            values = iter(int.from_bytes(one, "little") for one in wide)
            size = next(values, size) if size == 0xFFFFFFFF else size
            packed = next(values, packed) if packed == 0xFFFFFFFF else packed
            header = next(values, header) if header == 0xFFFFFFFF else header
        elif identifier == _UNICODE_PATH and data[:1] == b"\1" and data[1:5] == zlib.crc32(name).to_bytes(4, "little"):
            text = data[5:].decode("utf-8", "surrogateescape")
    problem = ""
    if flags & _ENCRYPTED:
        problem = "it is encrypted: unpack the archive with its password, and caption the folder"
    elif method not in _METHODS:
        problem = f"it is compressed by method {method}, which is not read: pack the archive again with `zip`"
    is_link = made_by >> 8 == _UNIX and S_ISLNK(attributes >> 16)
    return ZipEntry(text.replace("\\", "/"), header + shift, packed, size, method, crc, is_link, problem)


def _decode(name: bytes, flags: int) -> str:
    """Return a name as text. Without the flag it should be in code page 437, but programs on Linux store UTF-8."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("utf-8", "surrogateescape") if flags & _UTF8 else name.decode("cp437")


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(extra):
        identifier, length = struct.unpack_from("<2H", extra, position)
        yield identifier, extra[position + 4 : position + 4 + length]
        position += 4 + length
