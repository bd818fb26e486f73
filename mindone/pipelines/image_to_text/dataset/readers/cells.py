"""A table's cell that holds a picture: as bytes, base64, a data URI, or a path beside it."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

from mindone.models.share4v.processing.image_loading import ImageLoadError, data_uri_bytes, describe, download

from .base import ItemError

MAX_PICTURE_BYTES = 2**28  # as for a download; what is larger is no picture
MAX_VIDEO_BYTES = 2**31  # of one that is put into a shard


def cell_bytes(cell: Any, folder: str) -> bytes:
    """Return the picture that a cell holds or names.

    Args:
        cell: bytes, text, or a mapping with "bytes" and "path".
        folder: where a relative path begins.

    Raises:
        ItemError: there is none, or it cannot be read.
    """
    if isinstance(cell, (list, tuple)) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise ItemError("there is no picture in its row")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise ItemError(f"its row holds no picture: {cell!r:.80}")
    from .rows import is_inline

    if cell[:5].lower() == "data:":
        return _plain(data_uri_bytes, cell)
    if is_inline(cell):
        try:
            return base64.b64decode("".join(cell.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ItemError(f"the base64 in its row is damaged ({error})") from error
    if cell.lower().startswith(("http://", "https://")):
        return url_bytes(cell)
    return file_bytes(os.path.join(folder, cell))


def file_bytes(path: str, limit: int | None = None) -> bytes:
    """Return a file's bytes, of which there may be `limit`, by default as many as a picture may have.

    Raises:
        ItemError: it is not there, no file, or larger than it may be.
    """
    try:
        status = os.stat(path)
        if not S_ISREG(status.st_mode):
            raise ItemError("not a regular file")
        limit = MAX_PICTURE_BYTES if limit is None else limit
        if status.st_size > limit:
            raise ItemError(f"{status.st_size:,} bytes are more than it may have ({limit:,})")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ItemError("there is no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ItemError):
            raise
        raise ItemError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error


def url_bytes(url: str) -> bytes:
    """Fetch a picture.

    Raises:
        ItemError: it cannot be had.
    """
    return _plain(download, url)


def json_cell(data: bytes, column: str) -> Any:
    """Return a column of an object in JSON; a text alone is itself."""
    value = json.loads(data)
    return value.get(column) if isinstance(value, dict) else value


def _plain(read: Any, text: str) -> bytes:
    """Call one of the readers of `image_loading`, and leave the name out of its messages."""
    name = describe(text)
    try:
        data: bytes = read(text, name)
        return data
    except ImageLoadError as error:
        raise ItemError(str(error).removeprefix(f"{name}: ")) from error
