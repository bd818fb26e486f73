"""Rows of tables: which column has the images, and the Item of a row."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mindone.models.share4v.display import redacted

from ..state.keys import safe_key, without_suffix
from ..state.records import Item, jsonable
from .base import InputError, Location, ReaderOptions, SkippedTableError
from .column_names import shown, suggestion, value
from .item_builder import ItemBuilder

# Names of image columns, in order of preference; case does not matter.
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
# First characters of JPEG, PNG, GIF, WebP, TIFF and BMP files in base64.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk")
_BASE64_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n\r")
_PROBE = 200  # characters of a text that are checked for base64


_URL_COLUMNS = ("image_url", "url")
_NOT_REQUESTED = "it is a URL in a table of a folder; to download it, pass the table itself as an input"


def is_url(text: str) -> bool:
    """Return whether a text is a URL that reading would download."""
    return text[:8].lower().startswith(("http://", "https://"))


def is_inline(text: str) -> bool:
    """Return whether a text is an image itself, as a data URI or base64, and not a path or URL."""
    if text[:5].lower() == "data:":
        return True
    return len(text) > _PROBE and text.startswith(_BASE64_STARTS) and _BASE64_LETTERS.issuperset(text[:_PROBE])


@dataclass(frozen=True)
class Table:
    """A table, the columns that matter in it, and the builder of its rows' Items.

    Attributes:
        location: where it is.
        options: how it is listed.
        builder: builds the Items.
        image: name of the column with the images.
        caption, key: names of the columns with existing captions and with keys; a row may lack them.
    """

    location: Location
    options: ReaderOptions
    builder: ItemBuilder
    image: str
    caption: str | None = None
    key: str | None = None

    @classmethod
    def with_columns(
        cls,
        location: Location,
        options: ReaderOptions,
        builder: ItemBuilder,
        columns: Collection[str],
        likely: Collection[str] = (),
    ) -> Table:
        """Return a table after choosing its columns.

        Args:
            location, options, builder: as in the class; columns that `options` does not name are guessed.
            columns: names of all columns.
            likely: columns whose type shows that they contain images.

        Raises:
            InputError: a named column does not exist, or the image column cannot be guessed.
        """
        for option in ("image_column", "caption_column", "key_column"):
            name = getattr(options, option)
            if name is not None and name not in columns:
                raise InputError(
                    f"{location.name} has no column {name!r} ({option}); it has {shown(columns)}."
                    f"{suggestion(name, columns)}"
                )
        image = options.image_column or _guess(likely, IMAGE_COLUMNS) or next(iter(likely), None)
        image = image or _guess(columns, IMAGE_COLUMNS)
        if not location.downloads:
            _check_found_table(location, image, likely)
        if image is None:
            raise InputError(
                f"{location.name}: no column has the name of an image column; name it with image_column: "
                f"{shown(columns) or 'there are no columns'}"
            )
        caption = options.caption_column or _guess(columns, CAPTION_COLUMNS) or CAPTION_COLUMNS[0]
        return cls(location, options, builder, image, None if caption == image else caption, options.key_column)

    @cached_property
    def base(self) -> str:
        """Absolute base directory of relative paths."""
        return os.path.abspath(self.options.image_root or os.path.dirname(self.location.path))

    def item(self, number: int, row: Mapping[str, Any], locator: Mapping[str, Any]) -> Item:
        """Return the Item of a row; one whose values cannot be stored fails.

        Args:
            number: row number, from 0.
            row: its values.
            locator: locator of the image if the row contains the image itself.
        """
        try:
            return self._item(number, row, locator)
        except SkippedTableError:
            raise
        except (ValueError, ArithmeticError, RecursionError) as error:
            return self.unreadable_item(number, f"a value of the row cannot be stored: {error}")

    def _item(self, number: int, row: Mapping[str, Any], locator: Mapping[str, Any]) -> Item:
        others = {name: one for name, one in row.items() if name != self.image}
        columns = {name: jsonable(one) for name, one in others.items() if not isinstance(one, bytes)}
        caption = value(row, self.caption) if self.caption else None
        caption = caption if isinstance(caption, str) else None
        own_key = value(row, self.key) if self.key else None
        key = safe_key(str(own_key)) if own_key not in (None, "") else None

        cell = value(row, self.image)
        if isinstance(cell, (list, tuple)) and len(cell) == 1:
            cell = cell[0]
        if isinstance(cell, Mapping) and not cell.get("bytes"):
            cell = cell.get("path")
        if isinstance(cell, str) and cell.strip() and not is_inline(cell):
            if not self.location.downloads and is_url(cell):
                if number == 0:
                    raise SkippedTableError("urls")
                return self.builder.build_failure(key or self._row_key(number), redacted(cell), _NOT_REQUESTED, columns)
            shown_base = self.options.image_root or os.path.dirname(self.location.name)
            return self.builder.build_reference(cell, self.base, shown_base, key=key, columns=columns, caption=caption)
        key, source = key or self._row_key(number), self._row_source(number)
        if isinstance(cell, (str, Mapping)) and cell:
            return self.builder.build(key, source, locator, columns=columns, caption=caption)
        problem = "is empty" if not cell else "has no image in this row"
        reason = f"the column {self.image!r} {problem}: {cell!r:.80}"
        return self.builder.build_failure(key, source, reason, columns, caption)

    def stored_item(self, number: int, row: Mapping[str, Any], locator: Mapping[str, Any]) -> Item:
        """Return the Item of a row whose image was not read for the listing; arguments as in `item`."""
        if self.options.image_root:
            locator = {**locator, "base": self.base}
        if not self.location.downloads:
            locator = {**locator, "downloads": False}
        return self.item(number, {**row, self.image: {"bytes": True}}, locator)

    def unreadable_item(self, number: int, reason: str) -> Item:
        """Return the Item of a row that cannot be parsed."""
        return self.builder.build_failure(self._row_key(number), self._row_source(number), reason)

    def _row_key(self, number: int) -> str:
        stem = self.location.stem or without_suffix(os.path.basename(self.location.path))
        return safe_key(f"{self.location.prefix}{stem}/{number}")

    def _row_source(self, number: int) -> str:
        return f"{self.location.name}::{number}"


def _check_found_table(location: Location, image: str | None, likely: Collection[str]) -> None:
    """Raise the reason for which a table that a folder contains is not listed."""
    if image in likely:
        return
    if image is None:
        raise SkippedTableError("no_images")
    if image.lower() in _URL_COLUMNS:
        raise SkippedTableError("urls")
    if not location.paths:
        raise SkippedTableError("table")


def has_image_column(columns: Collection[str], options: ReaderOptions) -> bool:
    """Return whether the column of images, or one whose name is usual for it, is among some columns."""
    if options.image_column is not None:
        return options.image_column in columns
    return _guess(columns, IMAGE_COLUMNS) is not None


def _guess(columns: Collection[str], names: tuple[str, ...]) -> str | None:
    """Return the column with the first of `names` that exists, ignoring case; the first of several equal columns."""
    lower = {column.lower(): column for column in reversed(list(columns))}
    return next((lower[name] for name in names if name in lower), None)
