"""journal.jsonl: the records of a job in input order; what is in it survives any crash, and is never written again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .atomic_files import GROUP_BYTES, AppendOnlyFile, atomic_write, count_lines, lines_from, offset_of_line
from .listing import Listing
from .records import Item, Record, dumps, from_line, to_line


class JournalError(ValueError):
    """The journal is damaged where no crash damages it, or belongs to other inputs."""


class Journal:
    """Appends records in order and brings them to the disk by groups.

    Opening it cuts off what a crash left behind: a torn last line, half a character, zeros in place of a block.

    Args:
        path: made if there is nothing.

    Raises:
        JournalError: it is damaged further inside.
        OSError: it cannot be read or written.

    Attributes:
        count: records in it, those that were not yet brought to the disk counted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = AppendOnlyFile(path)
        try:
            self._cut_torn_end()
            self.count = count_lines(path)
            self._check_last()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    @property
    def durable(self) -> int:
        """How many records are on the disk."""
        return self.count - self._file.waiting

    def append(self, record: Record) -> None:
        """Add the next record; it is safe after `flush`.

        Raises:
            ValueError: it is not the next one.
            OSError: as `flush`, which a large group brings about.
        """
        if record.number != self.count:
            raise ValueError(f"record {record.key!r} has number {record.number}, expected {self.count}")
        self._file.append(to_line(record).encode())
        self.count += 1

    def flush(self) -> None:
        """Bring everything that was appended to the disk.

        Raises:
            OSError: the disk is full, say; the journal is as it was before the group, which can be tried again.
        """
        self._file.flush()

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield the records on the disk from number `start` on; errors as in `read_records`."""
        return read_records(self.path, start, self.durable)

    def pairs(self, listing: Listing, start: int = 0) -> Iterator[tuple[Item, Record]]:
        """Yield the inputs and their records from number `start` on; errors as in `read_pairs`."""
        return read_pairs(self.path, listing, start, self.durable)

    def verify(self, listing: Listing) -> None:
        """Read all of it beside the listing; about 25 microseconds a record.

        Raises:
            JournalError: the journal is damaged, or does not belong to these inputs.
        """
        for _ in self.pairs(listing):
            pass

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        self._file.close()

    def _cut_torn_end(self) -> None:
        """Keep the file up to the last line that is whole; only its last bytes are looked at."""
        size, length = self._file.size, 2 * GROUP_BYTES
        while True:
            tail = self._file.tail(length)
            begin = size - len(tail)
            # Half a line in front is left out: it is older than anything that a crash can damage.
            place = tail.find(b"\n") + 1 if begin else 0
            if place or not begin:
                break
            length *= 2
        while (end := tail.find(b"\n", place) + 1) and _is_whole(tail[place:end]):
            place = end
        if len(tail) - place > GROUP_BYTES and end:
            raise JournalError(f"{self.path}, byte {begin + place}: this is no record; {_REMOVE}")
        self._file.cut(begin + place)

    def _check_last(self) -> None:
        """Compare the last line's number with how many lines there are."""
        if self.count:
            with self.path.open("rb") as file:
                file.seek(offset_of_line(file, self.count - 1))
                number = from_line(file.readline()).number
            if number != self.count - 1:
                raise JournalError(_damaged(self.path, self.count - 1, f"it is the record of number {number}"))


_REMOVE = "the journal was changed or damaged: remove the lines from there on, and they are captioned again"
_OTHER = "it belongs to another job: use another directory"


def read_records(path: Path, start: int = 0, end: int | None = None) -> Iterator[Record]:
    """Yield a journal's records from number `start` on, those from `end` on left out.

    Raises:
        JournalError: a line cannot be read, or has another number.
    """
    for number, line in enumerate(lines_from(path, start), start):
        if number == end:
            return
        try:
            record = from_line(line)
        except (ValueError, TypeError) as error:
            raise JournalError(_damaged(path, number, str(error))) from error
        if record.number != number:
            raise JournalError(_damaged(path, number, f"it is the record of number {record.number}"))
        yield record


def read_pairs(path: Path, listing: Listing, start: int = 0, end: int | None = None) -> Iterator[tuple[Item, Record]]:
    """Yield inputs and their records; arguments as in `read_records`.

    Raises:
        JournalError: the journal is damaged, or does not belong to these inputs.
    """
    if end is not None and end > len(listing):
        raise JournalError(f"{path} has {end} records for {len(listing)} inputs; {_OTHER}")
    records = read_records(path, start, end)
    for item, record in zip(listing.items(start), records):  # noqa: B905  the journal may be shorter
        yield check_match(item, record, path), record


def check_match(item: Item, record: Record, path: Path) -> Item:
    """Return the item, which the record must be of.

    Raises:
        JournalError: it is not.
    """
    if (item.number, item.key) != (record.number, record.key):
        raise JournalError(
            f"{path}, line {record.number + 1}: the record of {record.key!r}, where {item.key!r} is listed; {_OTHER}"
        )
    return item


def _damaged(path: Path, number: int, reason: str) -> str:
    return f"{path}, line {number + 1}: {reason}; {_REMOVE}"


def _is_whole(line: bytes) -> bool:
    try:
        from_line(line)
    except (ValueError, TypeError):
        return False
    return True


def write_failed(journal: Journal, path: Path) -> int:
    """Write the failures among a journal's records as lines of JSON; return how many there are.

    A line has number, key, source, error, and what else is known: sha256, width, height, columns.

    Raises:
        JournalError: the journal is damaged.
        OSError: the file cannot be written.
    """
    count = 0
    with atomic_write(path) as file:
        for record in journal.records():
            if record.error is not None:
                file.write((dumps(failure_row(record)) + "\n").encode())
                count += 1
    return count


def failure_row(record: Record) -> dict[str, object]:
    """Return what a line of failed.jsonl says."""
    names = ("number", "key", "source", "error", "sha256", "width", "height", "columns")
    return {name: getattr(record, name) for name in names}
