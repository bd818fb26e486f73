"""Keys: unique relative paths without extension, made from file names and URLs."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from urllib.parse import unquote, urlsplit

from mindone.models.share4v.display import redacted

from .temp_table import TempTable

# Surrogates that no file name decodes to, and that no file name can be encoded from.
_NOT_ENCODABLE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
MAX_COMPONENT_BYTES = 240  # file systems allow 255; leaves room for a suffix


def safe_key(text: str) -> str:
    """Return a relative path that cannot leave the directory it is joined to, for any text from an archive or a table.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.keys import safe_key
        >>> safe_key("/data//../cats/./1")
        'data/__/cats/1'
    """
    text = _NOT_ENCODABLE.sub("_", text.replace("\0", "_"))
    parts = (_component(part) for part in text.replace(os.sep, "/").split("/"))
    return "/".join(part for part in parts if part) or "_"


def _component(part: str) -> str:
    if part in ("", ".", ".."):
        return "__" if part == ".." else ""
    data = part.encode("utf-8", "surrogatepass")
    if len(data) <= MAX_COMPONENT_BYTES:
        return part
    head = data[: MAX_COMPONENT_BYTES - 17].decode("utf-8", "ignore")
    return f"{head}-{hashlib.sha256(data).hexdigest()[:16]}"


def without_suffix(name: str) -> str:
    """Return a path without the extension of its last component; a leading dot is not an extension.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.keys import without_suffix
        >>> without_suffix("a.b/c.d.JPG"), without_suffix("a/.hidden")
        ('a.b/c.d', 'a/.hidden')
    """
    return os.path.splitext(name)[0]


def key_pair(path: str) -> tuple[str, str]:
    """Return the key of a path without its extension, and the key with it."""
    return safe_key(without_suffix(path)), safe_key(path)


def path_keys(path: str, base: str) -> tuple[str, str]:
    """Return the keys of a file as `key_pair` does: of its path relative to `base`, or of the full path outside it."""
    inside = path.removeprefix(base.rstrip(os.sep) + os.sep)
    return key_pair(os.path.splitdrive(inside)[1])


def url_keys(url: str) -> tuple[str, str]:
    """Return the keys of a URL as `key_pair` does: of its host and path."""
    try:
        parts = urlsplit(url)
        return key_pair(f"{parts.hostname or ''}/{unquote(parts.path)}")
    except ValueError:  # an invalid URL; downloading it will raise the reason
        return key_pair(redacted(url).replace(":", "_"))


def fold(key: str) -> str:
    """Return a key in the form in which keys are compared; some file systems ignore case and Unicode normalization."""
    return key.lower() if key.isascii() else unicodedata.normalize("NFC", key).casefold()


class KeyRegistry:
    """The keys that are in use, stored on disk so that memory does not grow with their number.

    Raises:
        OSError: for example because the disk is full; `claim` and `claim_name` raise it too.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.keys import KeyRegistry
        >>> registry = KeyRegistry()
        >>> [registry.claim(key, full) for key, full in [("1", "1.jpg"), ("1", "1.png"), ("1", "1.png")]]
        ['1', '1.png', '1.png~2']
        >>> registry.close()
    """

    def __init__(self) -> None:
        self._table = TempTable("next INTEGER")

    def claim(self, key: str, full_key: str, directory: str | None = None) -> str:
        """Claim the first of key, full_key, full_key~2, full_key~3, ... that is free, and return it.

        Args:
            key: preferred key.
            full_key: key with its extension, used if `key` is taken.
            directory: directory in which a file named after the key's last component is written; that file name must
                be free too.
        """
        for candidate in dict.fromkeys((key, full_key)):
            if self._claim(candidate, directory):
                return candidate
        counter = b"\0" + _encode(full_key)
        row = self._table.get(counter)
        number = row[0] if row else 2
        while not self._claim(f"{full_key}~{number}", directory):
            number += 1
        self._table.put(counter, number + 1)
        return f"{full_key}~{number}"

    def claim_name(self, name: str) -> bool:
        """Claim another name, such as a file that must be listed once; return False if it is taken."""
        return self._insert(b"\2" + name.encode("utf-8", "surrogatepass"))

    def close(self) -> None:
        """Delete the temporary file."""
        self._table.close()

    def _claim(self, key: str, directory: str | None) -> bool:
        if not self._insert(_encode(key)):
            return False
        return directory is None or self._insert(b"\1" + _encode(f"{directory}\0{key.rpartition('/')[2]}"))

    def _insert(self, name: bytes) -> bool:
        return self._table.add(name, None)


def _encode(key: str) -> bytes:
    return fold(key).encode("utf-8", "surrogatepass")
