"""What an earlier pass over a job's inputs left: its records by key, however the inputs are numbered now."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from .existing_captions import KEPT_EXISTING
from .journal import read_pairs
from .listing import Listing
from .records import Item, Record, from_line
from .temp_table import TempTable


class PreviousRecords:
    """The records that stand. Memory does not grow with their number.

    Args:
        path: lines of records, or nothing at all.
    """

    def __init__(self, path: Path) -> None:
        self._places = TempTable("place INTEGER")
        self._file = path.open("rb") if path.exists() else None
        place = 0
        for line in self._file or ():
            self._places.put(_blob(from_line(line).key), place)
            place += len(line)

    def get(self, item: Item) -> Record | None:
        """Return an input's record, numbered as the input is now; None where none stands."""
        row = self._places.get(_blob(item.key))
        if row is None or self._file is None:
            return None
        self._file.seek(row[0])
        record = from_line(self._file.readline())
        return replace(record, number=item.number, stands=True) if record.source == item.source else None

    def close(self) -> None:
        """Close the files."""
        self._places.close()
        if self._file is not None:
            self._file.close()


class WrittenCaptions:
    """Which captions beside pictures are the job's own work, and what was there before them.

    Args:
        journal, listing: of the pass that is over, or was broken.
    """

    def __init__(self, journal: Path, listing: Listing) -> None:
        self._texts = TempTable("written BLOB", "before TEXT")
        for item, record in read_pairs(journal, listing) if journal.exists() else ():
            if record.captions and KEPT_EXISTING not in record.notes:
                self._texts.put(_blob(item.key), _digest("\n".join(record.captions)), item.caption)

    def restore(self, item: Item) -> Item:
        """Return an input as it was before the job wrote its caption; one that was edited since is somebody's own."""
        if item.caption is None:
            return item
        written, before = self._texts.get(_blob(item.key)) or (None, None)
        return replace(item, caption=before) if written == _digest(item.caption) else item

    def close(self) -> None:
        """Give the space on the disk back."""
        self._texts.close()


def find_missing_inputs(journal: Path, before: Listing, now: Listing) -> list[Item]:
    """Return inputs that have captions and are not listed any more; the first hundred."""
    gone: list[Item] = []
    with closing(TempTable()) as keys:
        for item in now.items():
            keys.add(_blob(item.key))
        for item, record in read_pairs(journal, before):
            if record.captions and keys.get(_blob(item.key)) is None:
                gone.append(item)
                if len(gone) == 100:
                    break
    return gone


def _blob(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _digest(text: str) -> bytes:
    words = " ".join(text.split())  # a sidecar of several captions has a line each, and its reader may strip ends
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()
