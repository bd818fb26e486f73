"""Keys: from names of files to unique relative paths without extension."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from urllib.parse import unquote, urlsplit

from .temp_table import TempTable

MAX_COMPONENT_BYTES = 240  # file systems allow 255; a suffix must fit behind


def safe_key(text: str) -> str:
    """Return a relative path that stays inside the directory it is put in, whatever an archive or a table says.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.keys import safe_key
        >>> safe_key("/data//../cats/./1")
        'data/__/cats/1'
    """
    parts = (_component(part) for part in text.replace("\0", "_").replace(os.sep, "/").split("/"))
    return "/".join(part for part in parts if part) or "_"


def _component(part: str) -> str:
    if part in ("", ".", ".."):
        return "__" if part == ".." else ""
    data = part.encode("utf-8", "surrogatepass")
    if len(data) <= MAX_COMPONENT_BYTES:
        return part
    kept = data[: MAX_COMPONENT_BYTES - 17].decode("utf-8", "ignore")
    return f"{kept}-{hashlib.sha256(data).hexdigest()[:16]}"


def without_suffix(name: str) -> str:
    """Return a path without what follows the last dot of its last part; a dot in front stays.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.keys import without_suffix
        >>> without_suffix("a.b/c.d.JPG"), without_suffix("a/.hidden")
        ('a.b/c.d', 'a/.hidden')
    """
    return os.path.splitext(name)[0]


def key_pair(path: str) -> tuple[str, str]:
    """Return the keys of a path without and with its extension."""
    return safe_key(without_suffix(path)), safe_key(path)


def path_keys(path: str, base: str) -> tuple[str, str]:
    """Return the keys of a file: relative to `base` where it lies inside, else its whole path."""
    inside = path.removeprefix(base.rstrip(os.sep) + os.sep)
    return key_pair(os.path.splitdrive(inside)[1])


def url_keys(url: str) -> tuple[str, str]:
    """Return the keys of an address: its host and path."""
    try:
        parts = urlsplit(url)
        return key_pair(f"{parts.hostname or ''}/{unquote(parts.path)}")
    except ValueError:  # an address that cannot be parsed; fetching it will say so
        return key_pair(url.replace(":", "_"))


def fold(key: str) -> str:
    """Return what keys are compared by: on some file systems case and Unicode normalisation do not count."""
    return key.lower() if key.isascii() else unicodedata.normalize("NFC", key).casefold()


class KeyRegistry:
    """The keys that are taken, kept on disk, so that any number of them takes no memory.

    Raises:
        OSError: the disk is full, say; `claim` and `claim_name` raise it too.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.keys import KeyRegistry
        >>> registry = KeyRegistry()
        >>> [registry.claim(key, full) for key, full in [("1", "1.jpg"), ("1", "1.png"), ("1", "1.png")]]
        ['1', '1.png', '1.png~2']
        >>> registry.close()
    """

    def __init__(self) -> None:
        self._taken = TempTable("next INTEGER")

    def claim(self, key: str, full_key: str, beside: str | None = None) -> str:
        """Take the first of key, full_key, full_key~2, full_key~3, ... that is free, and return it.

        Args:
            key: what the input is to be called.
            full_key: the same with its extension, for when that is taken.
            beside: the folder where a file named by the key's last part would be written; that name must be free too.
        """
        for one in dict.fromkeys((key, full_key)):
            if self._claim(one, beside):
                return one
        counter = b"\0" + _blob(full_key)
        row = self._taken.get(counter)
        number = row[0] if row else 2
        while not self._claim(f"{full_key}~{number}", beside):
            number += 1
        self._taken.put(counter, number + 1)
        return f"{full_key}~{number}"

    def claim_name(self, name: str) -> bool:
        """Take any other name, as of a file that must not be listed twice; False if it is taken."""
        return self._insert(b"\2" + name.encode("utf-8", "surrogatepass"))

    def close(self) -> None:
        """Give the disk space back."""
        self._taken.close()

    def _claim(self, key: str, beside: str | None) -> bool:
        if not self._insert(_blob(key)):
            return False
        return beside is None or self._insert(b"\1" + _blob(f"{beside}\0{key.rpartition('/')[2]}"))

    def _insert(self, name: bytes) -> bool:
        return self._taken.add(name, None)


def _blob(key: str) -> bytes:
    return fold(key).encode("utf-8", "surrogatepass")
