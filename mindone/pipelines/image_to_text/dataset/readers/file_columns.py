"""What a metadata file says about image files: columns and captions, stored on disk by the images' paths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..state.temp_table import TempTable


@dataclass(frozen=True)
class Description:
    """What a row of metadata says about an image.

    Attributes:
        columns: the row's columns without the file's name, JSON-able.
        caption: its existing caption.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    caption: str | None = None


class FileColumns:
    """Descriptions by path; close it to release its temporary file.

    Raises:
        TempTableError: the disk is full; every method raises it too.
    """

    def __init__(self) -> None:
        self._table: TempTable | None = None  # most folders have no metadata

    def close(self) -> None:
        """Delete the temporary file."""
        if self._table is not None:
            self._table.close()

    def add(self, path: str, source: str, description: Description) -> bool:
        """Store what a metadata file, `source`, says about the image at an absolute path.

        What an earlier metadata file says is replaced; False is returned if the same file described the image before.
        """
        if self._table is None:
            self._table = TempTable("source TEXT", "columns TEXT", "caption TEXT")
        key, source_key = _encode(path), _encode(source)
        row = self._table.get(key)
        if row is not None and row[0] == source_key:
            return False
        self._table.put(key, source_key, json.dumps(description.columns), json.dumps(description.caption))
        return True

    def get(self, path: str) -> Description:
        """Return what is known about the image at an absolute path."""
        row = None if self._table is None else self._table.get(_encode(path))
        return Description() if row is None else Description(json.loads(row[1]), json.loads(row[2]))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
