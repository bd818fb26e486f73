"""Limits of decoding one image: which formats are decoded, and how much time, memory and data that may take.

All of them work in any thread: nothing uses signals, and time is the CPU time of the calling thread, so that neither a
busy machine nor other threads make a good image fail.
"""

from __future__ import annotations

import struct
import time
from functools import cache
from importlib import import_module
from typing import BinaryIO

# Pillow's formats that are decoded, with their plug-in modules, in the order in which they are tried; TGA, which has no
# magic number, comes last. Left out are those that start a program (EPS runs Ghostscript), that decode in Python
# (XPM, QOI, BLP, ...) or that no photograph is stored in. A new format is a new row.
PLUGINS = {
    "JPEG": "JpegImagePlugin",
    "MPO": "MpoImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "DIB": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "ICO": "IcoImagePlugin",
    "AVIF": "AvifImagePlugin",  # since Pillow 11.3
    "TGA": "TgaImagePlugin",
}
EXTERNAL = ("HEIF",)  # used if the application registered a plug-in, such as pillow-heif
FORMATS = frozenset((*PLUGINS, *EXTERNAL))

MAX_IMAGE_BYTES = 2**29  # of an image file
MAX_CPU_SECONDS = 10.0  # to decode an image; the largest JPEG and PNG that Pillow's pixel limit allows take 2 to 5
# A progressive JPEG visits every pixel once for each scan. Usual files have about 10 scans; hostile ones thousands.
MAX_SCANNED_PIXELS = 2**31
MAX_TIFF_PARTS = 2**19  # strips or tiles, for each of which Pillow makes a Python object
# How often the bytes of a file may be read, on average: some formats read them twice, none four times.
_MAX_READS = 4
_MAX_TIFF_TAGS = 4096  # usual files have about 20
_READ_ALLOWANCE = 2**24  # bytes
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
_TIFF_PART_TAGS = (273, 279, 324, 325)  # StripOffsets, StripByteCounts, TileOffsets, TileByteCounts
_START_OF_SCAN = b"\xff\xda"


class LimitError(Exception):
    """Decoding an image would exceed a limit; neither an OSError nor a ValueError, which Pillow's plug-ins catch."""


@cache
def _import_plugins() -> None:
    for module in dict.fromkeys(PLUGINS.values()):
        try:
            import_module(f"PIL.{module}")
        except ImportError:  # this Pillow does not have it
            continue


def formats() -> list[str]:
    """Return the formats for `Image.open(..., formats=)` that this Pillow has."""
    from PIL import Image

    _import_plugins()
    return [name for name in (*PLUGINS, *EXTERNAL) if name in Image.OPEN]


class LimitedFile:
    """A readable file for Pillow that stops decoding when it takes too long or reads too much.

    Pillow's decoders are fed through `read`, in pieces of 64 KiB; that is where the limits are checked.

    Args:
        file: open for reading, at its start.

    Raises:
        LimitError: from the constructor if the file is too large, later from `read` and `seek`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        file.seek(0)
        if self.size > MAX_IMAGE_BYTES:
            raise LimitError(f"the file has {self.size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}")
        self._remaining = _MAX_READS * self.size + _READ_ALLOWANCE
        self._end = time.thread_time() + MAX_CPU_SECONDS
        self._pixels = self._scans = 0
        self._last = b""

    def count_scans(self, pixels: int) -> None:
        """From now on count the scans of the JPEG file, which has this number of pixels."""
        self._pixels = pixels

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, all that are left if it is negative."""
        self._check_time()
        data = self._file.read(size)
        self._remaining -= len(data)
        if self._remaining < 0:
            raise LimitError("its parts overlap: more data would be read than the file has")
        if self._pixels and data:
            self._scans += (self._last + data).count(_START_OF_SCAN)
            self._last = data[-1:]
            if self._scans * self._pixels > MAX_SCANNED_PIXELS:
                raise LimitError(f"it has more than {MAX_SCANNED_PIXELS // self._pixels} progressive scans")
        return data

    def readline(self, size: int = -1) -> bytes:
        """Return a line, as `io.RawIOBase.readline` does."""
        self._check_time()
        data = self._file.readline(size)
        self._remaining -= len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset, as `io.IOBase.seek` does."""
        self._check_time()
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the current offset."""
        return self._file.tell()

    def _check_time(self) -> None:
        if time.thread_time() > self._end:
            raise LimitError(f"decoding took more than {MAX_CPU_SECONDS:.0f} s of CPU time")


def check_tiff(file: LimitedFile) -> None:
    """Check the number of tags, and of strips or tiles, of a TIFF file; files of other formats and damaged ones pass.

    Raises:
        LimitError: there are too many.
    """
    head = file.read(16)
    if head[:4] in _TIFF_MAGIC:
        try:
            count = _tiff_parts(file, head)
        except (struct.error, ValueError, OverflowError, OSError):  # damaged: Pillow's error says how
            count = 0
        if count > MAX_TIFF_PARTS:
            raise LimitError(f"it has {count:,} strips or tiles, more than the limit of {MAX_TIFF_PARTS:,}")
    file.seek(0)


def _tiff_parts(file: LimitedFile, head: bytes) -> int:
    order = "<" if head[:2] == b"II" else ">"
    is_big = b"+" in head[:4]
    (offset,) = struct.unpack(order + ("Q" if is_big else "L"), head[8:16] if is_big else head[4:8])
    file.seek(offset)
    (count,) = struct.unpack(order + ("Q" if is_big else "H"), file.read(8 if is_big else 2))
    if count > _MAX_TIFF_TAGS:
        raise LimitError(f"it has {count:,} tags, more than the limit of {_MAX_TIFF_TAGS:,}")
    entry = struct.Struct(order + ("HHQ8x" if is_big else "HHL4x"))  # tag, type, number of values
    entries = file.read(entry.size * count)
    usable = entries[: len(entries) - len(entries) % entry.size]
    return max((values for tag, _, values in entry.iter_unpack(usable) if tag in _TIFF_PART_TAGS), default=0)
