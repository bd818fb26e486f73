"""Reader: from an Item to its Picture, by nothing but the item's locator."""

from __future__ import annotations

import csv
import hashlib
import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import Any

from ..state.records import Item, Picture
from .archives import Archive, PlainArchive, open_archive
from .arrow_table import open_arrow
from .base import ItemError
from .cells import MAX_PICTURE_BYTES, MAX_VIDEO_BYTES, cell_bytes, file_bytes, json_cell, url_bytes
from .columns import arrow_modules
from .csv_table import parse_row
from .parquet_rows import ParquetColumn
from .tar_shard import BLOCK, DAMAGE

_CHUNK = 2**20
Locator = Mapping[str, Any]


class Reader:
    """Reads items, in any thread and in any process; files it reads from stay open for the next item.

    Args:
        open_files: how many tables and archives stay open.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers import Reader, list_inputs
        >>> reader = Reader()
        >>> for item in list_inputs(["photos"]):  # doctest: +SKIP
        ...     data = reader.read(item).frames[0]
    """

    def __init__(self, open_files: int = 8) -> None:
        self._limit, self._lock = open_files, Lock()
        self._open: OrderedDict[Hashable, Any] = OrderedDict()

    def read(self, item: Item) -> Picture:
        """Return an item's picture, or a video's frames.

        Raises:
            ItemError: it cannot be read; the message says why, without the item's name.
            ImportError: a package that its kind needs is not installed.
        """
        kind = item.locator.get("kind")
        if kind == "video":
            return _read_video(item.locator)
        data = self.data(item)
        return Picture((data,), hashlib.sha256(data).hexdigest())

    def data(self, item: Item) -> bytes:
        """Return the bytes of an item's file; errors as in `read`."""
        kind = item.locator.get("kind")
        if kind not in _READERS:
            raise ItemError(f"nothing reads a locator of kind {kind!r}; it was listed by another version")
        data = _READERS[kind](self, item.locator)
        if not data:
            raise ItemError("it is empty, 0 bytes")
        return data

    def sample(self, item: Item) -> bytes:
        """Return all members of an item's sample in its shard, as they lie there, headers included.

        Raises:
            ItemError: the shard cannot be read, or is not as it was.
        """
        begin, end = item.locator["sample"]
        return self._span(item.locator["path"], begin, end - begin, self._archive)

    def kept(self, key: Hashable, opener: Callable[[], Any]) -> Any:
        """Return what is open under a key, opening it where it is not; the one used longest ago is let go."""
        with self._lock:
            if key not in self._open:
                self._open[key] = opener()
                if len(self._open) > self._limit:
                    self._open.popitem(last=False)  # closed when the last thread is done with it
            self._open.move_to_end(key)
            return self._open[key]

    def _file(self, path: str) -> Archive:
        archive: Archive = self.kept(("file", path), lambda: PlainArchive(path))
        return archive

    def _archive(self, path: str) -> Archive:
        archive: Archive = self.kept(("archive", path), lambda: open_archive(path))
        return archive

    def _span(self, path: str, offset: int, size: int, opener: Callable[[str], Archive]) -> bytes:
        """Return bytes of a file, all that were asked for."""
        try:
            data = opener(path).read(offset, size)
        except DAMAGE as error:
            raise ItemError(f"{os.path.basename(path)} cannot be read: {_reason(error)}") from error
        if len(data) < size:
            raise ItemError(f"{os.path.basename(path)} ends in the middle of it")
        return data

    def read_row(self, locator: Locator) -> bytes:
        """A picture in a row of JSON or CSV."""
        path = locator["path"]
        line = self._span(path, locator["offset"], locator["size"], self._file)
        try:
            if locator["kind"] == "csv":
                cell = parse_row(line, locator["delimiter"])[locator["column"]]
            else:
                cell = json_cell(line, locator["column"])
        except (ValueError, IndexError, StopIteration, RecursionError, csv.Error) as error:
            raise ItemError(f"{os.path.basename(path)} was changed after it was listed") from error
        return cell_bytes(cell, os.path.dirname(path))

    def read_parquet(self, locator: Locator) -> bytes:
        """A picture in a row of a Parquet file."""
        where = (locator["path"], locator["group"], locator["column"])
        return self._cell(locator, lambda: self.kept(where, lambda: ParquetColumn(*where)).row(locator["row"]))

    def read_arrow(self, locator: Locator) -> bytes:
        """A picture in a row of an Arrow file."""
        path = locator["path"]

        def cell() -> Any:
            table = self.kept(("arrow", path), lambda: open_arrow(path))
            return table.column(locator["column"])[locator["row"]].as_py()

        return self._cell(locator, cell)

    def _cell(self, locator: Locator, read: Callable[[], Any]) -> bytes:
        path = locator["path"]
        try:
            cell = read()
        except (arrow_modules().ArrowException, OSError, IndexError, KeyError) as error:
            raise ItemError(f"{os.path.basename(path)} cannot be read: {_reason(error)}") from error
        return cell_bytes(cell, locator.get("base") or os.path.dirname(path))

    def read_tar(self, locator: Locator) -> bytes:
        """A member of an archive; its header must still say its size."""
        offset, size = locator["offset"], locator["size"]
        if size > MAX_PICTURE_BYTES:
            raise ItemError(f"{size:,} bytes are more than it may have ({MAX_PICTURE_BYTES:,})")
        data = self._span(locator["path"], offset - BLOCK, BLOCK + size, self._archive)
        header = None
        with suppress(tarfile.HeaderError):
            header = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape")
        if header is None or header.size != size:
            raise ItemError(f"{os.path.basename(locator['path'])} was changed after it was listed")
        return data[BLOCK:]


def _read_failure(reader: Reader, locator: Locator) -> bytes:
    raise ItemError(locator["error"])


# Kind of a locator -> how its bytes are read.
_READERS: dict[str, Callable[[Reader, Locator], bytes]] = {
    "file": lambda reader, locator: file_bytes(locator["path"]),
    "video": lambda reader, locator: file_bytes(locator["path"], MAX_VIDEO_BYTES),
    "url": lambda reader, locator: url_bytes(locator["url"]),
    "json": Reader.read_row,
    "csv": Reader.read_row,
    "parquet": Reader.read_parquet,
    "arrow": Reader.read_arrow,
    "tar": Reader.read_tar,
    "failure": _read_failure,
}


def _read_video(locator: Locator) -> Picture:
    from ...video import FrameSampling, VideoLoadError, read_frames

    path = locator["path"]
    try:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
        video = read_frames(path, FrameSampling(locator["mode"], locator["frames"]))
    except (OSError, VideoLoadError) as error:
        raise ItemError(_reason(error).removeprefix(f"{path}: ")) from error
    names = ("num_frames", "width", "height", "fps", "duration")
    return Picture(tuple(video.frames), digest.hexdigest(), {name: getattr(video, name) for name in names})


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@cache
def _shared() -> Reader:
    return Reader()


def read_item(item: Item) -> Picture:
    """Read an item with a reader that this process keeps; arguments and errors as in `Reader.read`."""
    return _shared().read(item)
