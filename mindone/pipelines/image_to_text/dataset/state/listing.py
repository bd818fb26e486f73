"""inputs.jsonl: the inputs of a job, written once before its first caption."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .atomic_files import Hash, atomic_write, count_lines, lines_from
from .records import Item, item_from_line, to_line


def write_listing(path: Path, items: Iterable[Item], sign: Callable[[bytes], None] | None = None) -> int:
    """Write items to a file that appears only when it is complete, and return their number.

    Args:
        path: of the file.
        items: what it lists.
        sign: called with the SHA-256 of the file before it appears, so that a listing is never without its signature.

    Raises:
        ValueError: the items are not numbered 0, 1, 2, ...
        OSError: the file cannot be written, for example because the disk is full.
    """
    count, digest = 0, hashlib.sha256()
    with atomic_write(path) as file:
        os.fchmod(file.fileno(), 0o600)  # the locators may contain passwords of URLs
        for item in items:
            if item.number != count:
                raise ValueError(f"item {item.key!r} has number {item.number}, expected {count}")
            line = to_line(item).encode()
            file.write(line)
            digest.update(line)
            count += 1
        if sign is not None:
            sign(digest.digest())
    return count


class Listing:
    """The inputs of a job, read from their file whenever they are needed.

    Args:
        path: a file that `write_listing` wrote.
        digest: updated with the bytes of the file, which is read once anyway to count its lines.
        on_lines: called with the number of lines so far, while they are counted.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, digest: Hash | None = None, on_lines: Callable[[int], object] | None = None) -> None:
        self.path = path
        self._count = count_lines(path, digest, on_lines)

    def __len__(self) -> int:
        return self._count

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from number `start`.

        Raises:
            ValueError: the file was edited: a line is not an item, or has the wrong number.
        """
        for number, line in enumerate(lines_from(self.path, start), start):
            try:
                item = item_from_line(line)
            except (ValueError, TypeError) as error:
                raise ValueError(self._edited(number, str(error))) from error
            if item.number != number:
                raise ValueError(self._edited(number, f"it has number {item.number}"))
            yield item

    def _edited(self, number: int, reason: str) -> str:
        return (
            f"{self.path}, line {number + 1}: {reason}; the list of inputs was edited after it was written: run the "
            "job with another state directory, or delete this one"
        )
