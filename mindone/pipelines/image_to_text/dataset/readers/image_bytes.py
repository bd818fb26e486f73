"""The bytes of an image that a file, a URL, or a cell of a table contains or names."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from mindone.models.share4v.processing.image_loading import ImageLoadError, data_uri_bytes, describe

from ..state.regular_files import NotRegularFileError, open_input
from .base import ItemError, similar_name
from .column_names import value
from .rows import is_inline

MAX_IMAGE_BYTES = 2**28  # the same limit as for downloads
MAX_VIDEO_BYTES = 2**31  # of a video that is copied into a shard


def cell_bytes(cell: Any, base: str, download: Callable[[str], bytes]) -> bytes:
    """Return the image that a cell of a table contains or names.

    Args:
        cell: bytes, a string (path, URL, data URI or base64), or a mapping with "bytes" and "path".
        base: base directory of relative paths.
        download: returns the image at a URL.

    Raises:
        ItemError: the cell has no image, or the image cannot be read.
    """
    if isinstance(cell, (list, tuple)) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise ItemError("there is no image in its row")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise ItemError(f"there is no image in its row: {cell!r:.80}")
    if cell[:5].lower() == "data:":
        return _load(data_uri_bytes, cell)
    if is_inline(cell):
        try:
            return base64.b64decode("".join(cell.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ItemError(f"the base64 in its row is invalid ({error})") from error
    if cell.lower().startswith(("http://", "https://")):
        return download(cell)
    return file_bytes(os.path.join(base, cell))


def file_bytes(path: str, limit: int | None = None) -> bytes:
    """Return the bytes of a file.

    Args:
        path: path of the file.
        limit: maximum size in bytes; by default MAX_IMAGE_BYTES.

    Raises:
        ItemError: it does not exist, is not a regular file, or is larger than the limit.
    """
    try:
        limit = MAX_IMAGE_BYTES if limit is None else limit
        with open_input(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise ItemError(size_problem(size, limit))
            return file.read(size)
    except (NotRegularFileError, IsADirectoryError):
        raise ItemError("not a regular file") from None
    except FileNotFoundError:
        similar = similar_name(path)
        hint = f"; {similar!r} exists, which differs only in case or encoding" if similar else ""
        raise ItemError(f"there is no such file{hint}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ItemError):
            raise
        raise ItemError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error


def json_cell(data: bytes, column: str) -> Any:
    """Return the value of a column of a JSON object; a plain string is the value itself."""
    row = json.loads(data)
    return value(row, column) if isinstance(row, dict) else row


def size_problem(size: int, limit: int) -> str:
    """Return the message about an input that is too large."""
    return f"it has {size:,} bytes; at most {limit:,} are read"


def _load(load: Callable[[str, str], bytes], text: str) -> bytes:
    """Call a function of `image_loading`, and remove the input's name from its messages."""
    name = describe(text)
    try:
        return load(text, name)
    except ImageLoadError as error:
        raise ItemError(str(error).removeprefix(f"{name}: ")) from error
