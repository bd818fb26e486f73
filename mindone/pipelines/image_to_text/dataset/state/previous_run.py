"""Results of the previous pass over a job's inputs, looked up by key because the inputs may be numbered differently."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from .atomic_files import atomic_write, lines_from
from .bounded_reading import bounded_lines, parse_json
from .existing_captions import KEPT_EXISTING
from .journal import read_pairs
from .listing import Listing
from .records import Item, Record, dumps, record_from_line
from .regular_files import open_own, own_exists
from .temp_table import TempTable

MAX_MISSING = 100


class PreviousRecords:
    """Records of the previous pass that remain valid; memory does not grow with their number.

    Args:
        path: file of records, one per line; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._offsets = TempTable("offset INTEGER")
        self._file = open_own(path) if own_exists(path) else None
        offset = 0
        for line in bounded_lines(self._file, path) if self._file is not None else ():
            self._offsets.put(_encode(record_from_line(line).key), offset)
            offset += len(line)

    def get(self, item: Item) -> Record | None:
        """Return the record of an input with the input's current number; None if there is none."""
        row = self._offsets.get(_encode(item.key))
        if row is None or self._file is None:
            return None
        self._file.seek(row[0])
        record = record_from_line(self._file.readline())
        # A relative path and an absolute one, as job.json has it, are different sources at the same place.
        if record.source != item.source and record.place != item.place:
            return None
        return replace(record, number=item.number, source=item.source, stands=True)

    def close(self) -> None:
        """Close the files."""
        self._offsets.close()
        if self._file is not None:
            self._file.close()


# Returns the captions that a record's caption file may have: those of the record, in every template that the job used.
WrittenTexts = Callable[[Record], Iterable[Sequence[str]]]


def recorded_captions(record: Record) -> Iterable[Sequence[str]]:
    """Return the captions of a record, as a caption file has them in a job without a template."""
    return (record.captions,)


class WrittenCaptions:
    """The caption files that the job itself wrote, and the captions that they replaced.

    Args:
        journal, listing: of the previous pass, which may be incomplete.
        earlier: what `note_written_captions` wrote, if it exists.
        written: returns what a record's caption file may have.

    Attributes:
        names: of the texts that the job wrote, without those that were the first ones.
    """

    def __init__(
        self, journal: Path, listing: Listing, earlier: Path, written: WrittenTexts = recorded_captions
    ) -> None:
        self._originals = TempTable("original TEXT")  # by key and digest of what was written
        self.names: set[str] = set()
        for line in lines_from(earlier, 0) if own_exists(earlier) else ():
            key, digest, original = parse_json(line)
            self._note(key, bytes.fromhex(digest), original)
        for key, digest, original in _written(journal, listing, written):
            self._note(key, digest, original)

    def _note(self, key: str, digest: bytes, original: str | None) -> None:
        self._originals.put(_encode(key) + digest, original)
        _, mark, name = key.partition("\0")
        if mark:
            self.names.add(name)

    def restore(self, item: Item) -> Item:
        """Return an input with the caption it had before the job; a caption that a user edited since stays."""
        if item.caption is None:
            return item
        found = self._originals.get(_encode(item.key) + _digest(item.caption))
        return item if found is None else replace(item, caption=found[0])

    def wrote(self, item: Item, name: str, caption: str) -> bool:
        """Return whether the job wrote a text of that name; the first one, whatever its name, has the name ""."""
        key = _named(item, name) if name else item.key
        return self._originals.get(_encode(key) + _digest(caption)) is not None

    def close(self) -> None:
        """Delete the temporary file."""
        self._originals.close()


def note_written_captions(
    path: Path, journal: Path, listing: Listing, written: WrittenTexts = recorded_captions
) -> None:
    """Add to a file which caption files the job wrote, and the captions that they replaced.

    A restart deletes the journal. If it is interrupted before its first record and restarted again with other settings,
    this file still tells the job's own captions from those that people wrote.
    """
    if not own_exists(journal):
        return
    with atomic_write(path) as file:
        for line in lines_from(path, 0) if own_exists(path) else ():
            file.write(line)
        for key, digest, original in _written(journal, listing, written):
            file.write((dumps([key, digest.hex(), original]) + "\n").encode())


def _written(journal: Path, listing: Listing, written: WrittenTexts) -> Iterator[tuple[str, bytes, str | None]]:
    """Yield what caption files the job wrote: key of the input, digest of the text, and the text that it replaced.

    Of several named texts, all but the first have the name behind the key, and replaced nothing.
    """
    for item, record in read_pairs(journal, listing) if own_exists(journal) else ():
        if not record.captions or KEPT_EXISTING in record.notes:
            continue
        for captions in written(record):
            first = captions[:1] if record.texts else captions
            yield item.key, _digest("\n".join(first)), item.caption
            for name, caption in zip(record.texts[1:], captions[1:], strict=False):
                yield _named(item, name), _digest(caption), None


def _named(item: Item, name: str) -> str:
    return f"{item.key}\0{name}"


def find_missing_inputs(journal: Path, before: Listing, now: Listing) -> list[Item]:
    """Return the inputs that have captions and are no longer listed, at most MAX_MISSING of them."""
    missing: list[Item] = []
    with closing(TempTable()) as keys:
        for item in now.items():
            keys.add(_encode(item.key))
        for item, record in read_pairs(journal, before):
            if record.captions and keys.get(_encode(item.key)) is None:
                missing.append(item)
                if len(missing) == MAX_MISSING:
                    break
    return missing


def _encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _digest(text: str) -> bytes:
    words = " ".join(text.split())  # a sidecar has one line per caption, and its reader strips whitespace
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()
