"""JSON files with one object.

It has paths and captions, as kohya's meta_cap.json; or an array, as COCO's images with annotations; or it is one row.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..state.keys import without_suffix
from ..state.records import Item
from .base import InputError, Location, ReaderOptions, is_media
from .column_names import shown
from .item_builder import ItemBuilder
from .json_rows import SPACE, TOKEN, Element, columns_of, elements, rows
from .rows import IMAGE_COLUMNS, Table, has_image_column
from .text_encoding import not_utf8

EXPECTED = (
    "expected an array of objects, or one object per line; an object with such an array in it; or an object of paths "
    "and captions, such as kohya's meta_cap.json"
)
_MAX_EARLY_ENTRIES = 1000  # entries to search for one that tells the format
_CAPTION = "caption"
_KOHYA = frozenset((_CAPTION, "tags"))  # keys of an image in kohya's metadata
_IMAGES, _ANNOTATIONS, _IMAGE_ID = "images", "annotations", "image_id"  # of COCO's files
_LICENSES = "licenses"  # of COCO's files, with URLs of no images


def object_rows(
    location: Location, options: ReaderOptions, builder: ItemBuilder, found: Iterable[Element], encoding: str
) -> Iterator[Item]:
    """Yield the Items of an object; its arrays with images that are not listed are counted as skipped.

    Args:
        location, options, builder: as for every reader.
        found: the object's entries.
        encoding: of the file, as in `TextFile`.

    Raises:
        InputError: the object has none of the known formats.
    """
    finder = _ImageFinder(options.image_root or os.path.dirname(location.path))
    early: list[tuple[Element, str, Any]] = []
    mapping: _Mapping | None = None
    arrays = _Arrays(options)
    for number, element in enumerate(found):
        name, value, reason = _entry(element)
        if mapping is not None:
            yield mapping.item(number, name, value, reason)
            continue
        if isinstance(value, list) and arrays.add(name, value, element):
            continue
        early.append((element, name, value))
        if reason is None and isinstance(value, (str, Mapping)) and finder.find(name) is not None:
            mapping = _Mapping(location, options, builder, finder)
            yield from (mapping.item(index, name, value, None) for index, (_, name, value) in enumerate(early))
            early.clear()
        elif len(early) == _MAX_EARLY_ENTRIES:
            break
    images = arrays.images()
    for name in arrays.unlisted(is_mapping=mapping is not None):
        builder.skipped.note("array", f"{location.name}: {name}")
    if mapping is None and images is not None:
        yield from rows(location, options, builder, images, encoding, arrays.with_captions)
        return
    if mapping is not None or not early:
        return
    row = {name: value for _, name, value in early}
    if has_image_column(columns_of(row, options), options):
        yield Table.with_columns(location, options, builder, columns_of(row, options)).item(0, row, {})
        return
    if all(isinstance(value, Mapping) and _KOHYA.intersection(value) for value in row.values()):
        raise InputError(
            f"{location.name} names images without their folder, such as {next(iter(row))!r:.80}, and there are none "
            f"in {finder.base}: pass their folder as image_root (--image-root)"
        )
    raise InputError(f"{location.name}: {EXPECTED}; it has {shown(list(row))}")


class _Arrays:
    """The arrays of an object: images, and the captions of COCO's annotations, which name their image by its id.

    Args:
        options: how the file is listed.
    """

    def __init__(self, options: ReaderOptions) -> None:
        self._options = options
        self._found: dict[str, list[Element]] = {}  # the arrays with images, by the names of their entries
        self._captions: dict[str, list[str]] = {}  # id of an image -> its captions

    def add(self, name: str, values: list[Any], element: Element) -> bool:
        """Store an array if it has images or captions; return whether it has."""
        captions = [
            one
            for one in values
            if isinstance(one, dict) and isinstance(one.get(_CAPTION), str) and one.get(_IMAGE_ID) is not None
        ]
        if name == _ANNOTATIONS and captions:
            for one in captions:
                self._captions.setdefault(str(one[_IMAGE_ID]), []).append(one[_CAPTION])
            return True
        inner = _array(element)
        if not _has_images(inner, self._options):
            return False
        self._found[name] = inner
        return True

    def images(self) -> list[Element] | None:
        """Return the array with the images: COCO's `licenses` has URLs too, and comes before `images`."""
        return self._found.get(_IMAGES) or next(iter(self._found.values()), None)

    def unlisted(self, is_mapping: bool) -> list[str]:
        """Return the names of the arrays with images that are not listed: all of a mapping, else all but one."""
        listed = None if is_mapping else self.images()
        return [name for name, array in self._found.items() if array is not listed and name != _LICENSES]

    def with_captions(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of an image with its annotations' captions: the first as `caption`, all as `captions`, or as
        `annotation_captions` if the row has such a column."""
        if not self._captions or row.get(_CAPTION):
            return row
        captions = self._captions.get(str(row.get("id")), [])
        name = "annotation_captions" if "captions" in row else "captions"
        return {**row, _CAPTION: next(iter(captions), None), name: captions}


class _Mapping:
    """Makes the Items of an object of paths and captions: values are captions, or objects with `caption`."""

    def __init__(self, location: Location, options: ReaderOptions, builder: ItemBuilder, finder: _ImageFinder) -> None:
        caption = options.caption_column or _CAPTION
        self._table = Table(location, options, builder, IMAGE_COLUMNS[0], caption, options.key_column)
        self._finder, self._caption = finder, caption

    def item(self, number: int, name: str, value: Any, reason: str | None) -> Item:
        if reason is None and not isinstance(value, (str, Mapping)):
            reason = f"expected the caption of {name!r:.80} or an object, got {type(value).__name__}"
        if reason is not None:
            return self._table.unreadable_item(number, reason)
        row = {self._caption: value} if isinstance(value, str) else dict(value)
        return self._table.item(number, {**row, IMAGE_COLUMNS[0]: self._finder.find(name) or name}, {})


class _ImageFinder:
    """Finds images by names without extension, which kohya's scripts write unless --full_path is given.

    Args:
        base: directory of relative names.

    Attributes:
        base: its absolute path.
    """

    def __init__(self, base: str) -> None:
        self.base, self._directory = os.path.abspath(base), ""
        self._names: dict[str, str] = {}  # in the last directory: name without extension -> name

    def find(self, name: str) -> str | None:
        """Return the path of an image as it was written, or with its extension; None if it is no image's."""
        if is_media(name):
            return name
        folder, stem = os.path.split(name)
        directory = os.path.join(self.base, folder)
        if directory != self._directory:
            self._directory = directory
            try:
                with os.scandir(directory) as entries:
                    names = sorted((entry.name for entry in entries if is_media(entry.name)), reverse=True)
            except (OSError, ValueError):
                names = []
            self._names = {without_suffix(one): one for one in names}
        found = self._names.get(stem)
        return None if found is None else os.path.join(folder, found)


def _entry(element: Element) -> tuple[str, Any, str | None]:
    """Return the name and the value of an entry, and the reason if it cannot be read."""
    _, data, problem = element
    if problem is not None:
        return "", None, problem
    try:
        [(name, value)] = json.loads(b"{" + data + b"}").items()
    except UnicodeDecodeError:
        return "", None, not_utf8(data)
    except (ValueError, RecursionError) as error:
        return "", None, f"not JSON: {error}"
    return name, value, None


def _array(element: Element) -> list[Element]:
    """Return the elements of an entry whose value is an array, with their offsets in the file."""
    offset, entry, _ = element
    name = TOKEN.search(entry)
    start = name.end() if name else 0
    inner = elements(io.BytesIO(entry[start:]))
    return [(offset + start + at, data, problem) for at, data, problem in inner]


def _has_images(array: list[Element], options: ReaderOptions) -> bool:
    for _, data, problem in array[:_MAX_EARLY_ENTRIES]:
        if problem is None and data.strip(SPACE)[:1] == b"{":
            try:
                row = json.loads(data)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and has_image_column(columns_of(row, options), options):
                return True
    return False
