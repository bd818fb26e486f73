"""journal.jsonl: the records of a job in input order; a record on disk survives any crash and is never rewritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .atomic_files import GROUP_BYTES, AppendOnlyFile, atomic_write, count_lines, lines_from, offset_of_line
from .bounded_reading import MAX_LINE_BYTES
from .listing import Listing
from .records import Item, Record, dumps, record_from_line, to_line
from .regular_files import open_own

_REMOVE_LINES = (
    "the journal was edited or damaged: remove the lines from there to its end, and their inputs are captioned again"
)
_OTHER_JOB = "it belongs to another job: use another directory"


class JournalError(ValueError):
    """The journal is damaged in a way that no crash causes, or belongs to other inputs."""


class Journal:
    """Appends records in order and writes them to disk in groups.

    Opening it removes what a crash left at its end: an incomplete last line, half a character, or a block of zeros.

    Args:
        path: path of the journal; created if it does not exist.

    Raises:
        JournalError: it is damaged before its last group.
        OSError: it cannot be read or written.

    Attributes:
        count: number of records, including those that are not on disk yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = AppendOnlyFile(path)
        try:
            self._remove_torn_end()
            self.count = count_lines(path)
            self._check_last_record()
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
        """Number of records on disk."""
        return self.count - self._file.pending

    def append(self, record: Record) -> None:
        """Add the next record; it is durable after `flush`.

        Raises:
            ValueError: its number is not the next one.
            OSError: as in `flush`, which is called if the group is large.
        """
        if record.number != self.count:
            raise ValueError(f"record {record.key!r} has number {record.number}, expected {self.count}")
        self._file.append(to_line(record).encode())
        self.count += 1

    def flush(self) -> None:
        """Write all appended records to disk.

        Raises:
            OSError: for example because the disk is full; the journal is as before, and the flush can be repeated.
        """
        self._file.flush()

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield the records on disk from number `start`; errors as in `read_records`."""
        return read_records(self.path, start, self.durable)

    def pairs(self, listing: Listing, start: int = 0) -> Iterator[tuple[Item, Record]]:
        """Yield the items and their records on disk from number `start`; errors as in `read_pairs`."""
        return read_pairs(self.path, listing, start, self.durable)

    def close(self) -> None:
        """Close the file without flushing it."""
        self._file.close()

    def _remove_torn_end(self) -> None:
        """Truncate the file after its last complete record; only the last groups are read."""
        size, length = self._file.size, 2 * GROUP_BYTES
        while True:
            tail = self._file.tail(length)
            tail_offset = size - len(tail)
            # Start at the first complete line of the tail: a line before it is older than anything a crash can damage.
            position = tail.find(b"\n") + 1 if tail_offset else 0
            if position or not tail_offset:
                break
            length *= 2  # a line longer than the tail
            if length > 2 * MAX_LINE_BYTES:
                raise JournalError(
                    f"{self.path}: a line at its end has more than {MAX_LINE_BYTES:,} bytes; {_REMOVE_LINES}"
                )
        while (end := tail.find(b"\n", position) + 1) and _is_record(tail[position:end]):
            position = end
        if len(tail) - position > GROUP_BYTES and end:
            raise JournalError(f"{self.path}, byte {tail_offset + position}: not a record; {_REMOVE_LINES}")
        self._file.truncate(tail_offset + position)

    def _check_last_record(self) -> None:
        """Check that the last record's number agrees with the number of lines."""
        if self.count:
            with open_own(self.path) as file:
                file.seek(offset_of_line(file, self.count - 1))
                number = record_from_line(file.readline()).number
            if number != self.count - 1:
                raise JournalError(_wrong_number(self.path, self.count - 1, number))


def read_records(path: Path, start: int = 0, end: int | None = None) -> Iterator[Record]:
    """Yield a journal's records from number `start` to before number `end`.

    Raises:
        JournalError: a line is not a record, or has the wrong number.
    """
    for number, line in enumerate(lines_from(path, start), start):
        if number == end:
            return
        try:
            record = record_from_line(line)
        except (ValueError, TypeError) as error:
            raise JournalError(f"{path}, line {number + 1}: {error}; {_REMOVE_LINES}") from error
        if record.number != number:
            raise JournalError(_wrong_number(path, number, record.number))
        yield record


def read_pairs(path: Path, listing: Listing, start: int = 0, end: int | None = None) -> Iterator[tuple[Item, Record]]:
    """Yield the items of a listing and their records; arguments as in `read_records`.

    Raises:
        JournalError: the journal is damaged, or belongs to other inputs.
    """
    if end is not None and end > len(listing):
        raise JournalError(f"{path} has {end} records, but there are {len(listing)} inputs; {_OTHER_JOB}")
    records = read_records(path, start, end)
    for item, record in zip(listing.items(start), records):  # noqa: B905  the journal may be shorter
        yield check_match(item, record, path), record


def check_match(item: Item, record: Record, path: Path) -> Item:
    """Return the item after checking that the record belongs to it.

    Raises:
        JournalError: it does not.
    """
    if (item.number, item.key) != (record.number, record.key):
        raise JournalError(
            f"{path}, line {record.number + 1}: expected the record of {item.key!r}, got that of {record.key!r}; "
            f"{_OTHER_JOB}"
        )
    return item


def write_failed(
    journal: Journal,
    path: Path,
    on_record: Callable[[Record], None] = lambda record: None,
    reviewed: Callable[[Record], Record] = lambda record: record,
) -> int:
    """Write the failed records of a journal as JSON lines, and return their number.

    A line has number, key, source and error, and sha256, width, height and columns as far as they are known. If the
    captions broke a rule, they are in `rejected`; `download` tells about an image at a URL.

    Args:
        journal: the complete journal of a job.
        path: file to write.
        on_record: called with every record, so that the journal is read only once.
        reviewed: returns a record as outputs have it.

    Raises:
        JournalError: the journal is damaged.
        OSError: the file cannot be written.
    """
    count = 0
    with atomic_write(path) as file:
        for record in map(reviewed, journal.records()):
            on_record(record)
            if record.error is not None:
                file.write((dumps(failure_row(record)) + "\n").encode())
                count += 1
    return count


def failure_row(record: Record) -> dict[str, object]:
    """Return the fields of a line of failed.jsonl."""
    names = ("number", "key", "source", "error", "sha256", "width", "height", "columns")
    optional = {name: getattr(record, name) for name in ("rejected", "download") if getattr(record, name)}
    return {**{name: getattr(record, name) for name in names}, **optional}


def _is_record(line: bytes) -> bool:
    try:
        record_from_line(line)
    except (ValueError, TypeError):
        return False
    return True


def _wrong_number(path: Path, expected: int, number: int) -> str:
    return f"{path}, line {expected + 1}: it is the record of number {number}; {_REMOVE_LINES}"
