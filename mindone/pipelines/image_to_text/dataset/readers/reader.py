"""Reader: reads the image or the video frames of an Item, using only the Item's locator."""

from __future__ import annotations

import csv
import hashlib
import os
import tarfile
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from threading import Lock, local
from typing import Any

from ..state.records import Frame, Item, Picture, Record
from ..state.regular_files import open_input
from ..state.tasks import Task
from .archives import Archive, PlainArchive, open_archive
from .arrow_columns import import_pyarrow
from .arrow_table import ArrowColumn
from .base import ItemError
from .csv_table import parse_row
from .downloads import DEFAULT_DOWNLOADS, DownloadOptions, ImageDownloads, no_downloads
from .image_bytes import (
    MAX_IMAGE_BYTES,
    MAX_VIDEO_BYTES,
    cell_bytes,
    file_bytes,
    json_cell,
    size_problem,
)
from .parquet_table import ParquetColumn
from .tar_shard import BLOCK, DAMAGE
from .text_encoding import LFS_ADVICE, LFS_POINTER, open_converted
from .zip_entries import read_entry

MAX_SAMPLE_BYTES = 2**31  # of a sample that is copied from a shard to a shard
_CHUNK = 2**20
Locator = Mapping[str, Any]


class Reader:
    """Reads items, in any thread and any process; tables and archives stay open for the next item.

    Args:
        open_files: how many tables and archives stay open.
        downloads: how URLs are downloaded; None lets them raise an ItemError.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers import Reader, list_inputs
        >>> reader = Reader()
        >>> for item in list_inputs(["photos"]):  # doctest: +SKIP
        ...     data = reader.read(item).frames[0]
    """

    def __init__(self, open_files: int = 8, downloads: DownloadOptions | None = DEFAULT_DOWNLOADS) -> None:
        self._limit, self._lock = open_files, Lock()
        self._download = no_downloads if downloads is None else ImageDownloads(downloads).read
        self._calls = local()  # what the download of the item that a thread reads was like
        self._open: OrderedDict[Hashable, Any] = OrderedDict()  # least recently used first

    def read(self, item: Item) -> Picture:
        """Return the image of an item, or the frames of a video.

        Raises:
            ItemError: it cannot be read; the message gives the reason without the item's name.
            ImportError: a package that its kind needs is not installed.
        """
        if item.locator.get("kind") == "video":
            return _read_video(item.locator)
        if "video" in item.locator:
            return self._read_packed_video(item.locator)
        self._calls.log = {}
        try:
            data = self.data(item)
        except ItemError as error:
            error.download = self._calls.log
            raise
        return Picture((data,), hashlib.sha256(data).hexdigest(), download=self._calls.log)

    def download(self, url: str) -> bytes:
        """Return the image at a URL; errors as of `ImageDownloads.read`."""
        log: dict[str, Any] = {}
        self._calls.log = log
        return self._download(url, log)

    def data(self, item: Item) -> bytes:
        """Return the bytes of an item's image or video file; errors as in `read`."""
        kind = item.locator.get("kind")
        if kind not in _READ_FUNCTIONS:
            raise ItemError(f"unknown kind of locator {kind!r}: another version listed the inputs; use that one")
        try:
            data = _READ_FUNCTIONS[kind](self, item.locator)
        except (ItemError, ImportError):
            raise
        except Exception as error:  # a hostile file makes libraries raise almost anything
            raise ItemError(f"it cannot be read: {_reason(error)}") from error
        if not data:
            raise ItemError("it is empty (0 bytes)")
        if data.startswith(LFS_POINTER):
            raise ItemError(LFS_ADVICE)
        return data

    def sample(self, item: Item) -> bytes:
        """Return all members of an item's sample from its shard, with their headers, unchanged.

        Raises:
            ItemError: the shard cannot be read, or has changed.
        """
        flat = item.locator["sample"]
        spans = list(zip(flat[::2], flat[1::2], strict=True))
        size = sum(end - begin for begin, end in spans)
        if size > MAX_SAMPLE_BYTES:
            raise ItemError(f"its sample has {size:,} bytes; at most {MAX_SAMPLE_BYTES:,} are copied")
        path = item.locator["path"]
        return b"".join(self._read_span(path, begin, end - begin, self._archive) for begin, end in spans)

    def close_files(self) -> None:
        """Close the open files; what is read next opens them again."""
        with self._lock:
            self._open.clear()  # each is closed when the last thread that uses it is done

    def _opened(self, key: Hashable, opener: Callable[[], Any]) -> Any:
        """Return the open file for `key`, opening it if needed; the least recently used one is dropped."""
        with self._lock:
            if key not in self._open:
                self._open[key] = opener()
                if len(self._open) > self._limit:
                    self._open.popitem(last=False)  # closed when the last thread that uses it is done
            self._open.move_to_end(key)
            return self._open[key]

    def _file(self, path: str) -> Archive:
        archive: Archive = self._opened(("file", path), lambda: PlainArchive(path))
        return archive

    def _text(self, path: str, encoding: str) -> Archive:
        text: Archive = self._opened(("text", path, encoding), lambda: open_converted(path, encoding))
        return text

    def _archive(self, path: str) -> Archive:
        archive: Archive = self._opened(("archive", path), lambda: open_archive(path))
        return archive

    def _read_span(self, path: str, offset: int, size: int, opener: Callable[[str], Archive]) -> bytes:
        """Return exactly `size` bytes of a file.

        Raises:
            ItemError: the file cannot be read, or is too short.
        """
        try:
            data = opener(path).read(offset, size)
        except DAMAGE as error:
            raise ItemError(f"{os.path.basename(path)} cannot be read: {_reason(error)}") from error
        if len(data) < size:
            raise ItemError(f"{os.path.basename(path)} is truncated: it ends before this input does")
        return data

    def read_row(self, locator: Locator) -> bytes:
        """Return the image in a row of a JSON or CSV table."""
        path = locator["path"]
        encoding = locator.get("encoding")
        opener = self._file if encoding is None else lambda name: self._text(name, encoding)
        row = self._read_span(path, locator["offset"], locator["size"], opener)
        try:
            if locator["kind"] == "csv":
                cell = parse_row(row, locator["delimiter"])[locator["column"]]
            else:
                cell = json_cell(row, locator["column"])
        except (ValueError, IndexError, StopIteration, RecursionError, csv.Error) as error:
            raise ItemError(_changed(path)) from error
        return cell_bytes(cell, os.path.dirname(path), self.download)

    def read_parquet(self, locator: Locator) -> bytes:
        """Return the image in a row of a Parquet file."""
        key = (locator["path"], locator["group"], locator["column"])
        return self._read_cell(locator, lambda: self._opened(key, lambda: ParquetColumn(*key)).row(locator["row"]))

    def read_arrow(self, locator: Locator) -> bytes:
        """Return the image in a row of an Arrow file."""
        path = locator["path"]

        def cell() -> Any:
            key = ("arrow", path, locator["column"])
            return self._opened(key, lambda: ArrowColumn(path, locator["column"])).row(locator["row"])

        return self._read_cell(locator, cell)

    def _read_cell(self, locator: Locator, read: Callable[[], Any]) -> bytes:
        path = locator["path"]
        try:
            cell = read()
        except (import_pyarrow().ArrowException, OSError, IndexError, KeyError) as error:
            raise ItemError(f"{os.path.basename(path)} cannot be read: {_reason(error)}") from error
        download = self.download if locator.get("downloads", True) else _no_download
        return cell_bytes(cell, locator.get("base") or os.path.dirname(path), download)

    def read_tar(self, locator: Locator) -> bytes:
        """Return the data of a member of a tar archive."""
        return b"".join(self._tar_chunks(locator))

    def read_zip(self, locator: Locator) -> bytes:
        """Return the data of an entry of a ZIP archive."""
        return b"".join(self._zip_chunks(locator))

    def _tar_chunks(self, locator: Locator) -> Iterator[bytes]:
        """Yield the data of a member, after checking that its header has the listed size."""
        path, offset, size = locator["path"], locator["offset"], locator["size"]
        _check_size(locator)
        header = None
        with suppress(tarfile.HeaderError):
            block = self._read_span(path, offset - BLOCK, BLOCK, self._archive)
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header is None or header.size != size:
            raise ItemError(_changed(path))
        for start in range(0, size, _CHUNK):
            yield self._read_span(path, offset + start, min(_CHUNK, size - start), self._archive)

    def _zip_chunks(self, locator: Locator) -> Iterator[bytes]:
        path = locator["path"]
        _check_size(locator)
        entry = {name: locator[name] for name in ("header", "packed", "size", "method", "crc")}
        try:
            yield from read_entry(self._file(path), **entry)
        except (*DAMAGE, zlib.error) as error:
            raise ItemError(f"{os.path.basename(path)} cannot be read: {_reason(error)}") from error

    def _read_packed_video(self, locator: Locator) -> Picture:
        """Return the frames of a video in an archive, which is copied to a temporary file: decoders seek in it."""
        chunks = (self._tar_chunks if locator["kind"] == "tar" else self._zip_chunks)(locator)
        suffix = os.path.splitext(locator["member"])[1]
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            return _read_video({**locator["video"], "path": file.name})


def _check_size(locator: Locator) -> None:
    limit = MAX_VIDEO_BYTES if "video" in locator else MAX_IMAGE_BYTES
    if locator["size"] > limit:
        raise ItemError(size_problem(locator["size"], limit))


def _no_download(url: str) -> bytes:
    return no_downloads(url, {})


def _read_failure(reader: Reader, locator: Locator) -> bytes:
    raise ItemError(locator["error"])


# Kind of a locator -> function that reads its bytes.
_READ_FUNCTIONS: dict[str, Callable[[Reader, Locator], bytes]] = {
    "file": lambda reader, locator: file_bytes(locator["path"]),
    "video": lambda reader, locator: file_bytes(locator["path"], MAX_VIDEO_BYTES),
    "url": lambda reader, locator: reader.download(locator["url"]),
    "json": Reader.read_row,
    "csv": Reader.read_row,
    "parquet": Reader.read_parquet,
    "arrow": Reader.read_arrow,
    "tar": Reader.read_tar,
    "zip": Reader.read_zip,
    "failure": _read_failure,
}


def _read_video(locator: Locator) -> Picture:
    from ...video import FrameSampling, VideoLoadError, read_frames

    path = locator["path"]
    try:
        digest = hashlib.sha256()
        with open_input(path) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        video = read_frames(path, FrameSampling(locator["mode"], locator["frames"]))
    except (OSError, ValueError, VideoLoadError) as error:
        raise ItemError(_reason(error).removeprefix(f"{path}: ")) from error
    names = ("num_frames", "width", "height", "fps", "duration")
    return Picture(tuple(video.frames), digest.hexdigest(), {name: getattr(video, name) for name in names})


def _changed(path: str) -> str:
    return f"{os.path.basename(path)} was changed after the inputs were listed"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# The readers that this process shares, so that all its jobs together have few files open, and are polite to servers.
_READERS: dict[DownloadOptions, Reader] = {}
_READERS_LOCK = Lock()


def read_item(item: Item, downloads: DownloadOptions = DEFAULT_DOWNLOADS) -> Picture:
    """Read an item with a Reader that this process shares; arguments and errors as of `Reader`."""
    with _READERS_LOCK:
        reader = _READERS.get(downloads)
        if reader is None:
            reader = _READERS[downloads] = Reader(downloads=downloads)
    return reader.read(item)


def reopen_files() -> None:
    """Let `read_item` open files again: inputs that are listed now are where the files of now have them.

    An open file is the one that was listed, even if another one has been renamed over it since.
    """
    with _READERS_LOCK:
        for reader in _READERS.values():
            reader.close_files()


def read_task(task: Task, downloads: DownloadOptions = DEFAULT_DOWNLOADS) -> tuple[Record, tuple[Frame, ...]]:
    """Read the input of a task; return the beginning of its record, and its frames, as of a Picture.

    What prevents reading it becomes the record's `error`; there are no frames then.
    """
    blank = task.record()
    try:
        picture = read_item(task.item, downloads)
    except (ItemError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        return replace(blank, error=reason, download=getattr(error, "download", {})), ()
    columns = {**blank.columns, **picture.columns}
    return replace(blank, sha256=picture.sha256, columns=columns, download=picture.download), picture.frames
