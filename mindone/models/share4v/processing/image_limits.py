"""Limits of decoding one image: how many pixels and bytes it may have, and how much time and memory it may take.

All of them work in any thread: nothing uses signals, and time is the CPU time of the calling thread, so that neither a
busy machine nor other threads make a good image fail. A decoder that reads its file at once cannot be stopped from
within the process; such formats are decoded in another one (`decoder_processes`), with the same limit of time and with
one of memory.
"""

from __future__ import annotations

import struct
import time
from typing import BinaryIO

MAX_IMAGE_BYTES = 2**29  # of an image file
# To decode an image of up to 2**26 pixels, and proportionally more for a larger one. JPEG and PNG take about 2 s.
MAX_CPU_SECONDS = 10.0
_USUAL_PIXELS = 2**26
# A progressive JPEG visits every pixel once for each scan. Usual files have about 10 scans; hostile ones thousands.
MAX_SCANNED_PIXELS = 2**31
# Memory of a process that decodes one image, beyond what it has when it starts: for any image, and for each pixel.
MEMORY_BYTES = 2**30
MEMORY_BYTES_PER_PIXEL = 40
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


def time_exceeded(seconds: float) -> LimitError:
    """Return the error for an image whose decoding took more than this CPU time."""
    return LimitError(f"decoding took more than {seconds:.0f} s of CPU time")


def too_many_bytes(size: int) -> LimitError:
    """Return the error for a file of this size."""
    return LimitError(f"the file has {size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}")


def max_pixels(given: int | None = None) -> int | None:
    """Return the maximum number of pixels of an image; None for no limit.

    Args:
        given: the caller's limit; by default the number above which Pillow refuses to open an image, which is twice
            `PIL.Image.MAX_IMAGE_PIXELS` (between the two, Pillow only warns).

    Example:
        >>> from mindone.models.share4v.processing.image_limits import max_pixels
        >>> max_pixels(), max_pixels(1_000_000_000)
        (178956970, 1000000000)
    """
    from PIL import Image

    if given is not None:
        if not isinstance(given, int) or given < 1:
            raise ValueError(f"max_image_pixels must be an integer of at least 1, got {given!r}")
        return given
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def cpu_seconds(pixels: int, usual: float | None = None) -> float:
    """Return how many seconds of CPU time decoding an image of this number of pixels may take.

    Args:
        pixels: width times height.
        usual: the limit for images of up to 2**26 pixels; by default `MAX_CPU_SECONDS`.

    Example:
        >>> from mindone.models.share4v.processing.image_limits import cpu_seconds
        >>> cpu_seconds(640 * 480), cpu_seconds(2**27)
        (10.0, 20.0)
    """
    return (MAX_CPU_SECONDS if usual is None else usual) * max(1.0, pixels / _USUAL_PIXELS)


class LimitedFile:
    """A readable file for Pillow that stops decoding when it takes too long or reads too much.

    Pillow's decoders are fed through `read`, in pieces of 64 KiB; that is where the limits are checked.

    Args:
        file: open for reading.
        seconds: of CPU time, in the calling thread, for an image of usual size; by default `MAX_CPU_SECONDS`.

    Raises:
        LimitError: from the constructor if the file is too large, later from `read` and `seek`.
    """

    def __init__(self, file: BinaryIO, seconds: float | None = None) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        file.seek(0)
        if self.size > MAX_IMAGE_BYTES:
            raise too_many_bytes(self.size)
        self._remaining = _MAX_READS * self.size + _READ_ALLOWANCE
        self._start = time.thread_time()
        self._seconds = seconds
        self._max_seconds = cpu_seconds(0, seconds)
        self._pixels = self._scans = 0
        self._last = b""

    def allow_time(self, pixels: int) -> None:
        """Set the time limit for an image of this number of pixels."""
        self._max_seconds = cpu_seconds(pixels, self._seconds)

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
        if time.thread_time() > self._start + self._max_seconds:
            raise time_exceeded(self._max_seconds)


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
