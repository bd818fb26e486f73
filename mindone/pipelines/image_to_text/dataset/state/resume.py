"""A job's passes over its inputs: the first, one for those that failed or are new, and one that begins anew.

A pass begins with a listing. The new listing takes the old one's place, and the old journal goes, in steps of which any
may be the last before a crash: `inputs.next.jsonl` is there exactly while the journal beside it is the old pass's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from .atomic_files import atomic_write, count_lines, publish
from .existing_captions import KEPT_EXISTING
from .journal import Journal
from .listing import Listing, write_listing
from .previous_run import WrittenCaptions, find_missing_inputs
from .records import Item, Record, to_line
from .speed_log import SPEED_LOG_NAME

INPUTS, JOURNAL, PREVIOUS = "inputs.jsonl", "journal.jsonl", "previous.jsonl"
_NEXT = "inputs.next.jsonl"

Found = Callable[[], Iterable[Item]]


def finish_interrupted_start(directory: Path) -> None:
    """Finish the beginning of a pass that a crash interrupted."""
    if (directory / _NEXT).exists():
        (directory / JOURNAL).unlink(missing_ok=True)
        publish(directory / _NEXT, directory / INPUTS)


def load_or_create_listing(directory: Path, found: Found) -> Listing:
    """List the inputs, or return how they were listed before."""
    if not (directory / INPUTS).exists():
        write_listing(directory / INPUTS, found())
    return Listing(directory / INPUTS)


def start_over(directory: Path, found: Found) -> None:
    """Begin a pass in which nothing stands; captions that the job wrote beside pictures do not count as existing."""
    for name in (PREVIOUS, "failed.jsonl", SPEED_LOG_NAME):
        (directory / name).unlink(missing_ok=True)
    if (directory / JOURNAL).exists():
        Journal(directory / JOURNAL).close()  # which cuts off what a crash left behind
    _list_again(directory, found)


def start_next_pass(directory: Path, found: Found, with_failures: bool) -> list[Item]:
    """Begin a pass in which records stand, unless inputs that have captions are gone; return those that are.

    Args:
        directory: of the job.
        found: lists the inputs that are there now.
        with_failures: whether inputs that failed are tried again.
    """
    Journal(directory / JOURNAL).close()  # which cuts off what a crash left behind
    scratch = directory / "inputs.scratch.jsonl"
    write_listing(scratch, found())
    gone = find_missing_inputs(directory / JOURNAL, Listing(directory / INPUTS), Listing(scratch))
    if gone:
        scratch.unlink()
        return gone
    with Journal(directory / JOURNAL) as journal, atomic_write(directory / PREVIOUS) as file:
        for record in journal.records():
            if _stands(record, with_failures):
                file.write(to_line(replace(record, stands=True)).encode())
    _list_again(directory, Listing(scratch).items)  # a walk over millions of files is not made twice
    scratch.unlink()
    return []


def count_done(directory: Path) -> int:
    """Return how many inputs have their record."""
    journal = directory / JOURNAL
    return count_lines(journal) if journal.exists() else 0


def is_complete(directory: Path) -> bool:
    """Whether every input that was listed has its record."""
    inputs = directory / INPUTS
    return inputs.exists() and (directory / JOURNAL).exists() and count_lines(inputs) == count_done(directory)


def inputs_changed(listing: Listing, found: Found) -> bool:
    """Whether the inputs that are there now are others than those listed; their captions do not count."""
    now = iter(found())
    for held in listing.items():
        item = next(now, None)
        if item is None or replace(item, caption=None) != replace(held, caption=None):
            return True
    return next(now, None) is not None


def _stands(record: Record, with_failures: bool) -> bool:
    """Existing captions are looked for again, since somebody may have changed them."""
    return KEPT_EXISTING not in record.notes and (record.error is None or not with_failures)


def _list_again(directory: Path, found: Found) -> None:
    if not (directory / INPUTS).exists():
        write_listing(directory / INPUTS, found())
        return
    with closing(WrittenCaptions(directory / JOURNAL, Listing(directory / INPUTS))) as own:
        items: Iterator[Item] = map(own.restore, found())
        write_listing(directory / _NEXT, items)
    finish_interrupted_start(directory)
