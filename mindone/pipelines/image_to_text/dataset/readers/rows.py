"""Rows of tables: which column holds the pictures, and what a row becomes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..state.keys import safe_key, without_suffix
from ..state.records import jsonable
from .base import Found, InputError, Place, ReaderOptions, failure, listed_file

# Guessed in this order, case not counted.
IMAGE_COLUMNS = (
    "image",
    "img",
    "picture",
    "image_path",
    "img_path",
    "image_file",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "path",
    "file",
    "jpg",
    "png",
    "webp",
    "image_bytes",
    "video",
    "video_path",
    "image_url",
    "url",
)
CAPTION_COLUMNS = ("caption",)
# How the base64 of JPEG, PNG, GIF, WebP, TIFF and BMP begins.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk")
_BASE64_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n\r")
_PROBE = 200


def is_inline(text: str) -> bool:
    """Tell whether a text is a picture itself, as a data URI or base64, and no name of one."""
    if text[:5].lower() == "data:":
        return True
    return len(text) > _PROBE and text.startswith(_BASE64_STARTS) and _BASE64_LETTERS.issuperset(text[:_PROBE])


@dataclass(frozen=True)
class Table:
    """A table's place and the columns that matter in it.

    Attributes:
        place: where it is.
        options: of the source.
        image: the column with pictures.
        caption, key: the columns with existing captions and with keys; a row need not have them.
    """

    place: Place
    options: ReaderOptions
    image: str
    caption: str | None = None
    key: str | None = None

    @classmethod
    def of(cls, place: Place, options: ReaderOptions, columns: Collection[str], likely: Collection[str] = ()) -> Table:
        """Choose the columns of a table.

        Args:
            place: where it is.
            options: name columns, or leave them to be guessed.
            columns: of the table.
            likely: those whose type says that they hold pictures.

        Raises:
            InputError: a named column is not there, or none can be guessed.
        """
        for option in ("image_column", "caption_column", "key_column"):
            name = getattr(options, option)
            if name is not None and name not in columns:
                raise InputError(f"{place.name} has no column {name!r} ({option}); it has {', '.join(columns)}")
        image = options.image_column or _guess(likely, IMAGE_COLUMNS) or next(iter(likely), None)
        image = image or _guess(columns, IMAGE_COLUMNS)
        if image is None:
            raise InputError(
                f"{place.name}: none of its columns is known to hold pictures; name it by image_column: "
                f"{', '.join(columns) or 'it has none'}"
            )
        caption = options.caption_column or _guess(columns, CAPTION_COLUMNS) or CAPTION_COLUMNS[0]
        return cls(place, options, image, None if caption == image else caption, options.key_column)

    @cached_property
    def base(self) -> str:
        """The absolute directory where relative paths begin."""
        return os.path.abspath(self.options.image_root or os.path.dirname(self.place.path))

    def row(self, number: int, row: Mapping[str, Any], inline: Mapping[str, Any]) -> Found:
        """Return what a row stands for.

        Args:
            number: of the row.
            row: its values; the picture may be left out where only reading the item brings it.
            inline: the locator of the picture where the row itself holds it.
        """
        others = {name: value for name, value in row.items() if name != self.image}
        columns = {name: jsonable(value) for name, value in others.items() if not isinstance(value, bytes)}
        found = self._found(number, row.get(self.image), inline, columns)
        caption = row.get(self.caption) if self.caption else None
        if isinstance(caption, str):
            found = replace(found, caption=caption)
        if self.key and row.get(self.key) not in (None, ""):
            key = safe_key(str(row[self.key]))
            found = replace(found, key=key, full_key=key)
        return found

    def broken(self, number: int, reason: str) -> Found:
        """Return a row that cannot be read."""
        return failure(self._key(number), self._source(number), reason)

    def _found(self, number: int, cell: Any, inline: Mapping[str, Any], columns: Mapping[str, Any]) -> Found:
        cell = cell[0] if isinstance(cell, (list, tuple)) and len(cell) == 1 else cell
        if isinstance(cell, Mapping) and not cell.get("bytes"):
            cell = cell.get("path")
        if isinstance(cell, str) and cell.strip() and not is_inline(cell):
            shown = self.options.image_root or os.path.dirname(self.place.name)
            return listed_file(cell, self.base, shown, self.options, columns)
        if isinstance(cell, (str, Mapping)) and cell:
            return Found(self._key(number), self._key(number), self._source(number), inline, columns)
        reason = f"the column {self.image!r} is empty" if not cell else f"the column {self.image!r} holds no picture"
        return failure(self._key(number), self._source(number), f"{reason}: {cell!r:.80}", columns)

    def stored(self, number: int, row: Mapping[str, Any], inline: Mapping[str, Any]) -> Found:
        """Return what a row stands for whose picture is read later; arguments as in `row`, without the picture."""
        inline = {**inline, "base": self.base} if self.options.image_root else inline
        return self.row(number, {**row, self.image: {"bytes": True}}, inline)

    def _key(self, number: int) -> str:
        stem = self.place.stem or without_suffix(os.path.basename(self.place.path))
        return safe_key(f"{self.place.prefix}{stem}/{number}")

    def _source(self, number: int) -> str:
        return f"{self.place.name}::{number}"


def _guess(columns: Collection[str], names: tuple[str, ...]) -> str | None:
    lower = {column.lower(): column for column in reversed(list(columns))}
    return next((lower[name] for name in names if name in lower), None)
