"""The listing and the journal: records on disk survive a crash, and what a crash leaves at the end is removed."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT, TESTS

from mindone.pipelines.image_to_text.dataset.state import atomic_files
from mindone.pipelines.image_to_text.dataset.state.atomic_files import AppendOnlyFile, atomic_write, lines_from
from mindone.pipelines.image_to_text.dataset.state.journal import Journal, JournalError, write_failed
from mindone.pipelines.image_to_text.dataset.state.listing import Listing, write_listing
from mindone.pipelines.image_to_text.dataset.state.records import Item, Record, to_line


def record(number: int, caption: str = "Ein Kätzchen 🐈, \u2028.") -> Record:
    return Record(number, f"cats/{number}", f"cats/{number}\udcff.jpg", (caption,))


def written(path: Path, count: int) -> bytes:
    with Journal(path) as journal:
        for number in range(count):
            journal.append(record(number))
    return path.read_bytes()


def test_a_listing_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "state" / "inputs.jsonl"

    def items(count: int, broken: bool) -> object:
        for number in range(count):
            yield Item(number, f"{number}", f"{number}\udcff.jpg")
        if broken:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_listing(path, items(5, broken=True))
    assert list(path.parent.iterdir()) == []
    assert write_listing(path, items(5, broken=False)) == 5
    with pytest.raises(KeyboardInterrupt):  # the old listing stays
        write_listing(path, items(7, broken=True))
    listing = Listing(path)
    assert len(listing) == 5
    assert [item.number for item in listing.items(3)] == [3, 4] and list(listing.items(5)) == list(
        listing.items(9)
    ) == []
    assert next(listing.items(4)).source == "4\udcff.jpg"
    with pytest.raises(ValueError, match="item '7' has number 7, expected 0"):
        write_listing(path, [Item(7, "7", "7.jpg")])


def test_an_edited_listing_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "inputs.jsonl"
    write_listing(path, (Item(number, str(number), "x") for number in range(4)))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[2], lines[3]]))
    with pytest.raises(ValueError, match=r"line 2: it has number 2; the list of inputs was edited"):
        list(Listing(path).items())
    path.write_bytes(lines[0] + b"{}\n")
    with pytest.raises(ValueError, match="line 2: expected a line with number, key and source"):
        list(Listing(path).items())


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_lines_are_found_at_any_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(atomic_files, "_CHUNK", chunk)
    path = tmp_path / "lines"
    lines = [b"a\n", b"\n", b"ccc\n", b"dd\n", b"no end"]
    path.write_bytes(b"".join(lines))
    assert [list(lines_from(path, start)) for start in range(7)] == [lines[start:] for start in range(7)]
    assert atomic_files.count_lines(path) == 4


def test_records_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(record(0))
        assert (journal.count, journal.durable) == (1, 0) and path.read_bytes() == b""
        journal.flush()
        journal.append(record(1))
        assert [one.number for one in journal.records()] == [0]
        with pytest.raises(ValueError, match="record 'cats/5' has number 5, expected 2"):
            journal.append(record(5))
    with Journal(path) as journal:
        assert journal.count == journal.durable == 2
        assert list(journal.records()) == [record(0), record(1)] and list(journal.records(1)) == [record(1)]
        journal.append(record(2))
    assert path.read_text(encoding="utf-8") == "".join(to_line(record(number)) for number in range(3))


def test_pending_records_are_dropped_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt), Journal(path) as journal:
        journal.append(record(0))
        raise KeyboardInterrupt
    assert path.read_bytes() == b""


@pytest.mark.parametrize("garbage", ["", "zeros", "half", "noise"])
def test_a_torn_end_is_removed_at_every_byte_of_the_last_two_lines(tmp_path: Path, garbage: str) -> None:
    """The lines have multi-byte characters, so some positions split a character."""
    path = tmp_path / "journal.jsonl"
    data = written(path, 4)
    lines = data.splitlines(keepends=True)
    begin = len(b"".join(lines[:2]))
    step = 1 if garbage == "" else 7
    tail = {"": b"", "zeros": bytes(64), "half": "🐈".encode()[:2], "noise": b"\xff\x00}\n\x00"}[garbage]
    for end in range(begin, len(data) + 1, step):
        path.write_bytes(data[:end] + tail)
        complete = data[:end].count(b"\n")
        with Journal(path) as journal:
            assert journal.count == complete, end
            assert path.read_bytes() == b"".join(lines[:complete])
            for number in range(complete, 4):
                journal.append(record(number))
        assert path.read_bytes() == data


def test_a_block_of_zeros_in_the_last_group_is_removed_with_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = written(path, 6)
    lines = data.splitlines(keepends=True)
    begin = len(b"".join(lines[:3])) + 5
    path.write_bytes(data[:begin] + bytes(20) + data[begin + 20 :])
    with Journal(path) as journal:
        assert journal.count == 3
    assert path.read_bytes() == b"".join(lines[:3])


def test_damage_before_the_last_group_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for number in range(20):
            journal.append(record(number, "x" * 2**18))
    data = bytearray(path.read_bytes())
    data[100:110] = bytes(10)
    path.write_bytes(data)
    with pytest.raises(JournalError, match=r"byte 0: not a record; .*remove the lines from there"):
        Journal(path)
    assert path.read_bytes() == data


def test_lines_longer_than_a_group(tmp_path: Path) -> None:
    path, long = tmp_path / "journal.jsonl", "x" * (9 * 2**20)
    with Journal(path) as journal:
        for number in range(3):
            journal.append(record(number, long))
    with path.open("ab") as file:
        file.write(to_line(record(3, long)).encode()[:-5])
    with Journal(path) as journal:
        assert journal.count == 3 and [one.captions[0] == long for one in journal.records()] == [True] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[2]], "line 2: it is the record of number 2"),
        (lambda lines: [lines[0], lines[1], lines[1]], "line 3: it is the record of number 1"),
        (lambda lines: lines[1:], "line 2: it is the record of number 2"),
    ],
)
def test_missing_and_repeated_lines_are_detected_immediately(tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path, 3).splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))  # type: ignore[operator]
    with pytest.raises(JournalError, match=message):
        Journal(path)


def test_a_journal_must_belong_to_its_inputs(tmp_path: Path) -> None:
    path, inputs = tmp_path / "journal.jsonl", tmp_path / "inputs.jsonl"
    written(path, 3)
    write_listing(inputs, (Item(number, f"cats/{number}", "x") for number in range(5)))
    with Journal(path) as journal:
        list(journal.pairs(Listing(inputs)))
        assert [(item.number, one.number) for item, one in journal.pairs(Listing(inputs), 1)] == [(1, 1), (2, 2)]
        write_listing(
            inputs, (Item(number, f"{'cats' if number < 2 else 'dogs'}/{number}", "x") for number in range(5))
        )
        with pytest.raises(JournalError, match="line 3: expected the record of 'dogs/2', got that of 'cats/2'"):
            list(journal.pairs(Listing(inputs)))
        write_listing(inputs, [Item(0, "cats/0", "x")])
        with pytest.raises(JournalError, match="3 records, but there are 1 inputs"):
            list(journal.pairs(Listing(inputs)))


def test_failures_are_written_to_a_separate_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(record(0))
        journal.append(Record(1, "cats/1", "cats/1\udcff.jpg", error="there is no such file", columns={"id": 7}))
        journal.flush()
        assert write_failed(journal, tmp_path / "failed.jsonl") == 1
    [line] = (tmp_path / "failed.jsonl").read_text(encoding="utf-8").splitlines()
    failed = json.loads(line)
    assert failed["number"] == 1 and failed["error"] == "there is no such file" and failed["columns"] == {"id": 7}


def test_a_full_disk_leaves_the_journal_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk accepts part of a group; the rest, and a second flush, fail until there is space."""
    path = tmp_path / "journal.jsonl"
    before = written(path, 2)
    journal = Journal(path)
    for number in range(2, 5):
        journal.append(record(number))
    disk = _SmallDisk(journal._file, 100)
    monkeypatch.setattr(journal._file, "_file", disk)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            journal.flush()
        assert path.read_bytes() == before and journal.durable == 2
    disk.left = 10**6
    journal.flush()
    journal.close()
    with Journal(path) as again:
        assert list(again.records()) == [record(number) for number in range(5)]


class _SmallDisk:
    """A file on a disk that has `left` bytes of free space."""

    def __init__(self, file: AppendOnlyFile, left: int) -> None:
        self.file, self.left = file._file, left

    def write(self, data: memoryview) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.file.write(data[: self.left])
        self.left -= taken
        return taken

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


WRITER = """
import sys
from pathlib import Path
from helpers.crashing import without_upstream
without_upstream(sys.argv[1])
from mindone.pipelines.image_to_text.dataset.state.atomic_files import AppendOnlyFile
file = AppendOnlyFile(Path(sys.argv[2]))
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks")
def test_two_processes_cannot_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl.partial"
    command = [sys.executable, "-c", WRITER, str(ROOT), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=TESTS) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(OSError, match=r"partial: another process is writing this file: wait .* another output"):
            AppendOnlyFile(path)
        other.communicate()
    AppendOnlyFile(path).close()
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_takes_over_the_file_of_its_own_failed_job(tmp_path: Path) -> None:
    """As in a notebook, which keeps the traceback of the failed job, and with it the file open."""
    path = tmp_path / "lines"
    first = AppendOnlyFile(path)
    first.append(b"never on the disk")
    again = AppendOnlyFile(path)
    with pytest.raises(ValueError, match="closed file"):
        first.flush()
    again.append(b"line")
    again.flush()
    again.close()
    assert path.read_bytes() == b"line"


def test_an_atomic_write_replaces_a_file_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(OSError, match="full"), atomic_write(path) as file:
        file.write(b"new")
        raise OSError("full")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
