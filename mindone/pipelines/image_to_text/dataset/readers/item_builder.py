"""ItemBuilder: turns what the readers find into numbered Items with unique keys and existing captions."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mindone.models.share4v.display import redacted

from ..state.existing_captions import read_caption
from ..state.keys import KeyRegistry, fold, path_keys, safe_key, url_keys, without_suffix
from ..state.records import Item
from ..state.skipped import SkippedFiles
from .base import ReaderOptions, file_locator
from .file_columns import FileColumns
from .text_encoding import not_utf8

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # Python's stand-in for a byte that is not text


class ItemBuilder(AbstractContextManager["ItemBuilder"]):
    """Builds the Items of one listing; close it to release the temporary file that stores the keys.

    Args:
        options: where existing captions are, and which frames of a video to take.
        skipped: counts what the readers skip.

    Attributes:
        file_columns: what metadata files say about images; their readers fill it.

    Raises:
        OSError: the keys cannot be stored, for example because the disk is full; every method raises it too.
    """

    def __init__(self, options: ReaderOptions, skipped: SkippedFiles | None = None) -> None:
        self._options = options
        self.skipped = SkippedFiles() if skipped is None else skipped
        self.file_columns = FileColumns()
        self._registry = KeyRegistry()
        self._number = 0

    def __exit__(self, *exception: object) -> None:
        self._registry.close()
        self.file_columns.close()

    def is_new_file(self, path: str) -> bool:
        """Return whether this is the first call for `path`; a file that two folders share is listed once."""
        return self._registry.claim_name(path)

    def is_new_directory(self, path: str) -> bool:
        """Return whether this is the first call for a directory, whose metadata is then read."""
        return self._registry.claim_name(f"{path}\0")

    def build(
        self,
        key: str,
        source: str,
        locator: Mapping[str, Any],
        *,
        full_key: str | None = None,
        columns: Mapping[str, Any] | None = None,
        caption: str | None = None,
        directory: str | None = None,
        caption_files: Mapping[str, str] | None = None,
        described_as: str | None = None,
    ) -> Item:
        """Return the next Item.

        Args:
            key: the preferred key.
            source: name of the input in messages.
            locator: how to find its bytes again, JSON-able.
            full_key: key with its extension, used if `key` is taken; by default `key`.
            columns: the other columns of its table row, JSON-able.
            caption: existing caption, if its table or shard has one; by default it is read from a caption file.
            directory: directory of the input's file, if it is a file of its own; caption files are beside it.
            caption_files: the caption files in the directory where its caption would be, if they are known, by folded
                name; it saves looking for each.
            described_as: existing caption in a metadata file, which counts if there is no caption file.
        """
        key = self._registry.claim(key, full_key or key, directory)
        caption = (caption or "").strip() or None
        try:
            if caption is None:
                caption, file_name = self._read_caption(key, directory, caption_files)
                if file_name is not None:
                    locator = {**locator, "caption_file": file_name}
                caption = caption or (described_as or "").strip() or None
        except (OSError, ValueError) as error:  # a caption that cannot be read must not be overwritten
            reason = getattr(error, "strerror", None) or error
            locator = {"kind": "failure", "error": f"its existing caption cannot be read: {reason}"}
        item = Item(self._number, key, source, locator, columns or {}, caption)
        self._number += 1
        return item

    def build_failure(
        self,
        key: str,
        source: str,
        reason: str,
        columns: Mapping[str, Any] | None = None,
        caption: str | None = None,
    ) -> Item:
        """Return the Item of an input that exists but cannot be read; reading it raises an ItemError with `reason`."""
        return self.build(key, source, {"kind": "failure", "error": reason}, columns=columns, caption=caption)

    def build_reference(
        self,
        text: str,
        base: str,
        shown_base: str,
        *,
        key: str | None = None,
        columns: Mapping[str, Any] | None = None,
        caption: str | None = None,
    ) -> Item:
        """Return the Item of a path or URL from a list or a table.

        Args:
            text: a path, absolute or relative to `base`, or a URL.
            base: absolute directory.
            shown_base: the same directory as the caller wrote it.
            key: key from the row, if it has one; by default it follows from the path or URL.
            columns, caption: as in `build`.
        """
        if text[:8].lower().startswith(("http://", "https://")):
            own_key, full_key = (key, key) if key else url_keys(text)
            locator = {"kind": "url", "url": text}
            return self.build(own_key, redacted(text), locator, full_key=full_key, columns=columns, caption=caption)
        if text[:7].lower() == "file://":
            try:
                text = url2pathname(urlsplit(text).path)
            except ValueError as error:  # such as a bracket that is not closed
                own_key = key or safe_key(without_suffix(text))
                return self.build_failure(own_key, text, f"the URL is malformed: {error}", columns, caption)
        path = os.path.normpath(os.path.join(base, text))
        if not text.isascii() and "\0" not in path and not os.path.lexists(path):
            path, reason = _other_spelling(text, base)
            if reason is not None:
                own_key = key or path_keys(path, base)[0]
                return self.build_failure(own_key, os.path.join(shown_base, text), reason, columns, caption)
        own_key, full_key = (key, key) if key else path_keys(path, base)
        if "\0" in path:
            return self.build_failure(own_key, text, "the path contains a null character", columns, caption)
        return self.build(
            own_key,
            os.path.normpath(os.path.join(shown_base, text)),
            file_locator(path, self._options),
            full_key=full_key,
            columns=columns,
            caption=caption,
            directory=os.path.dirname(path),
        )

    def _read_caption(
        self, key: str, directory: str | None, caption_files: Mapping[str, str] | None
    ) -> tuple[str | None, str | None]:
        """Return the caption in a file named after the key, in the directory where sidecar files are written.

        Names are compared as `fold` does. If the file's name is not exactly the key and the suffix, such as a.TXT, it
        is returned too, so that it is replaced and no second file a.txt is written beside it.
        """
        folder, _, name = key.rpartition("/")
        if self._options.caption_root is not None:
            directory = os.path.join(self._options.caption_root, folder)
        if directory is None:
            return None, None
        for suffix in self._options.caption_suffixes:
            expected = name + suffix
            if caption_files is not None:
                found = caption_files.get(fold(expected))
                candidates = [expected, found] if found is not None else []  # the exact name first
            else:
                candidates = _spellings(name, suffix)
            for candidate in dict.fromkeys(candidates):
                caption = read_caption(os.path.join(directory, candidate))
                if caption is not None:
                    return caption, None if candidate == expected else candidate
        return None, None


def _other_spelling(text: str, base: str) -> tuple[str, str | None]:
    """Return the path of a file whose name has another Unicode normalization; else the path itself.

    If it cannot exist because the text is not UTF-8, the reason is returned too.
    """
    for form in ("NFC", "NFD"):
        path = os.path.normpath(os.path.join(base, unicodedata.normalize(form, text)))
        if os.path.lexists(path):
            return path, None
    data = text.encode("utf-8", "surrogateescape") if _ESCAPED_BYTE.search(text) else b""
    reason = f"there is no such file, and its name is {not_utf8(data)}" if data else None
    return os.path.normpath(os.path.join(base, text)), reason


def _spellings(name: str, suffix: str) -> list[str]:
    """Return the usual spellings of a caption file's name, the exact one first."""
    names = [name] if name.isascii() else [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return [spelling + ending for spelling in names for ending in (suffix, suffix.upper())]
