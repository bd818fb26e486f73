"""Text files as other programs write them: UTF-16, other encodings and lines that end in CR, read as UTF-8 with LF.

A file that is UTF-8 already is read as it is, by offset. Any other is converted while it is read, in order; the offsets
of its rows are those in the converted text.
"""

from __future__ import annotations

import codecs
import io
from dataclasses import dataclass
from typing import BinaryIO, cast

from ..state.regular_files import open_input
from .archives import Archive, CompressedArchive, PlainArchive
from .base import InputError

PLAIN = ""  # the encoding of a file that needs no conversion
_HEAD_BYTES = 2**16
_CHUNK = 2**16
# Byte order mark -> encoding; those of UTF-32 first, since one of them begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CR = "+cr"  # appended to the encoding if lines end in CR only, as programs of the first Macs write them
# First bytes of files that are not text -> what they are and what to do.
_OTHER_FILES = (
    (b"PK\3\4", "a ZIP archive or an Excel workbook (.xlsx)", "save the sheet as CSV UTF-8, or name the archive .zip"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", "save the sheet as CSV UTF-8"),
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"ARROW1", "an Arrow file", "name it .arrow"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd"),
    (b"%PDF", "a PDF document", "export its table as CSV"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
)
LFS_POINTER = b"version https://git-lfs"
LFS_ADVICE = "it is a pointer of Git LFS, not the file itself: run `git lfs pull` where it was cloned"
_HTML = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class TextFile:
    """A text file that is opened for reading as UTF-8.

    Attributes:
        file: its bytes as UTF-8, with LF or CRLF; a byte order mark of UTF-8 is not removed.
        encoding: PLAIN, or what `open_converted` needs to read it again.
    """

    file: BinaryIO
    encoding: str


def open_text(path: str, name: str, encoding: str | None = None) -> TextFile:
    """Open a table or list as UTF-8.

    Args:
        path: of the file.
        name: the path in messages.
        encoding: the file's encoding; by default UTF-8, UTF-16 or UTF-32, told by its first bytes.

    Raises:
        InputError: it is no text; the message says what it is.
        OSError: it cannot be read.
    """
    with open_input(path) as file:
        head = file.read(_HEAD_BYTES)
    _check_is_text(head, name)
    found = encoding or _encoding_of(head)
    if not encoding and not found and b"\n" not in head and b"\r" in head.rstrip(b"\r\n"):
        found = _CR
    elif found and "\n" not in (text := head.decode(found, "ignore")) and "\r" in text.rstrip("\r\n"):
        found += _CR
    if found in (PLAIN, "utf-8", "utf8"):
        return TextFile(open_input(path), PLAIN)
    return TextFile(_converted(path, found), found)


def open_converted(path: str, encoding: str) -> Archive:
    """Return the bytes of a text file by offset, with the encoding that `open_text` returned."""
    return PlainArchive(path) if encoding == PLAIN else CompressedArchive(lambda: _converted(path, encoding))


def check_encoding(name: str) -> None:
    """Check the name of an encoding.

    Raises:
        InputError: it is unknown, or not one of texts.
    """
    try:
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise InputError(
            f"unknown encoding {name!r} (--encoding): use a name such as cp1252 (Windows, Western), gbk (Chinese), "
            "shift_jis (Japanese), utf-16 or latin-1"
        ) from error


def not_utf8(data: bytes) -> str:
    """Return the message about bytes that are not UTF-8, with what they probably are."""
    try:
        data.decode("utf-8")
        return "it is UTF-8"
    except UnicodeDecodeError as error:
        byte = data[error.start]
    return (
        f"not UTF-8 (byte 0x{byte:02x}): the file was probably saved in an encoding of Windows. Save it as UTF-8 (in "
        "Excel: CSV UTF-8), or name its encoding (--encoding): cp1252 for Western languages, gbk for Chinese, "
        "shift_jis for Japanese"
    )


def is_lfs_pointer(path: str) -> bool:
    """Return whether a file is what `git clone` writes in place of a large file if Git LFS is not installed."""
    try:
        with open_input(path) as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except (OSError, ValueError):
        return False


def _encoding_of(head: bytes) -> str:
    mark = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
    if mark is not None:
        return mark
    start = head[:400]
    if len(start) < 4 or b"\0" not in start:
        return PLAIN
    # ASCII characters in UTF-16 without a mark have a zero in every other byte.
    even, odd = start[::2].count(0), start[1::2].count(0)
    if odd > len(start) // 4 and not even:
        return "utf-16-le"
    return "utf-16-be" if even > len(start) // 4 and not odd else PLAIN


def _check_is_text(head: bytes, name: str) -> None:
    for start, what, advice in _OTHER_FILES:
        if head.startswith(start):
            raise InputError(f"{name} is {what}, not what its name says: {advice}")
    if head.startswith(LFS_POINTER):
        raise InputError(f"{name}: {LFS_ADVICE}")
    if head.lstrip()[:20].lower().startswith(_HTML):
        raise InputError(f"{name} is a web page, not what its name says: download the file itself again")


def _converted(path: str, encoding: str) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Converter(open_input(path), encoding), _CHUNK))


class _Converter(io.RawIOBase):
    """Reads a text file as UTF-8; bytes that its encoding does not allow raise a UnicodeDecodeError."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        name = encoding.removesuffix(_CR) or "utf-8"
        self._newlines = encoding.endswith(_CR)
        errors = "surrogateescape" if name == "utf-8" else "strict"
        self._decoder = codecs.getincrementaldecoder(name)(errors)
        self._errors = "surrogateescape" if name == "utf-8" else "surrogatepass"
        self._pending, self._at_start, self._at_end = b"", True, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._pending and not self._at_end:
            data = self._file.read(_CHUNK)
            self._at_end = not data
            text = self._decoder.decode(data, not data)
            if self._newlines:
                text = text.replace("\r", "\n")
            if text and self._at_start:
                text, self._at_start = text.removeprefix("\ufeff"), False
            self._pending = text.encode("utf-8", self._errors)
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
