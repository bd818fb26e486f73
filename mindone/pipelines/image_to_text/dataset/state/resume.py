"""Passes over a job's inputs: the first pass, a pass for failed or new inputs, and a pass that starts over.

Each pass starts with a listing of the inputs. Replacing the old listing and deleting the old journal takes several
steps, and a crash may follow any of them: `inputs.next.jsonl` exists exactly while the journal belongs to the old pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from .atomic_files import atomic_write, count_lines, lines_from, publish
from .existing_captions import KEPT_EXISTING
from .journal import Journal
from .listing import Listing, write_listing
from .paths import ALL_ANSWERS, FAILED, IMAGE_HASHES, INPUTS, JOURNAL, PREVIOUS, SPEED_LOG, WRITTEN
from .previous_run import (
    WrittenCaptions,
    WrittenTexts,
    find_missing_inputs,
    note_written_captions,
    recorded_captions,
)
from .records import Item, Record, record_from_line, to_line
from .regular_files import own_exists, remove_own
from .signature import sign_listing
from .temp_table import TempTable

_NEXT = "inputs.next.jsonl"

ListInputs = Callable[[], Iterable[Item]]  # lists the inputs that exist now


def finish_interrupted_start(directory: Path) -> None:
    """Finish the start of a pass that a crash interrupted."""
    if own_exists(directory / _NEXT):
        remove_own(directory / JOURNAL)
        publish(directory / _NEXT, directory / INPUTS)


def load_or_create_listing(
    directory: Path, list_inputs: ListInputs, on_lines: Callable[[int], object] | None = None
) -> Listing:
    """Return the listing of the current pass; it is written if the job is new. `on_lines` is as for `Listing`."""
    if not own_exists(directory / INPUTS):
        write_listing(directory / INPUTS, list_inputs(), partial(sign_listing, directory))
    return Listing(directory / INPUTS, on_lines=on_lines)


def start_over(directory: Path, list_inputs: ListInputs, written: WrittenTexts = recorded_captions) -> None:
    """Start a pass that keeps no records; captions that the job wrote beside images do not count as existing ones."""
    for name in (PREVIOUS, FAILED, SPEED_LOG, IMAGE_HASHES):
        remove_own(directory / name)
    _repair_journal(directory)
    if own_exists(directory / INPUTS):
        note_written_captions(directory / WRITTEN, directory / JOURNAL, Listing(directory / INPUTS), written)
    _replace_listing(directory, list_inputs, written)


def start_next_pass(
    directory: Path, list_inputs: ListInputs, retry_failed: bool, written: WrittenTexts = recorded_captions
) -> list[Item]:
    """Start a pass that keeps the valid records, unless inputs that have captions are missing.

    Args:
        directory: state directory of the job.
        list_inputs: lists the inputs that exist now.
        retry_failed: whether to try failed inputs again.
        written: returns what a record's caption file may have.

    Returns:
        The missing inputs; if there are any, nothing was changed.
    """
    _repair_journal(directory)
    scratch = directory / "inputs.scratch.jsonl"  # because walking over millions of files twice takes too long
    write_listing(scratch, list_inputs())
    missing = find_missing_inputs(directory / JOURNAL, Listing(directory / INPUTS), Listing(scratch))
    if not missing:
        _keep_valid_records(directory, retry_failed)
        remove_own(directory / IMAGE_HASHES)  # what failed has none in it, and other inputs may be listed now
        _replace_listing(directory, Listing(scratch).items, written)
    remove_own(scratch)
    return missing


def _keep_valid_records(directory: Path, retry_failed: bool) -> None:
    """Write the valid records of the current pass, and those that it has not reached yet, to previous.jsonl."""
    with (
        Journal(directory / JOURNAL) as journal,
        closing(TempTable()) as keys,
        atomic_write(directory / PREVIOUS) as file,
    ):
        for record in journal.records():
            keys.add(record.key.encode("utf-8", "surrogatepass"))
            if _remains_valid(record, retry_failed):
                file.write(to_line(replace(record, stands=True)).encode())
        for line in lines_from(directory / PREVIOUS) if own_exists(directory / PREVIOUS) else ():
            if keys.add(record_from_line(line).key.encode("utf-8", "surrogatepass")):
                file.write(line)


def count_done(directory: Path) -> int:
    """Return the number of inputs that have a record."""
    journal = directory / JOURNAL
    return count_lines(journal) if own_exists(journal) else 0


def count_answers(directory: Path) -> int:
    """Return the number of answers, also of inputs that have no record; those that cannot be read do not count."""
    count = 0
    for path in directory.glob(ALL_ANSWERS):
        with suppress(OSError):
            count += count_lines(path)
    return count


def is_complete(directory: Path) -> bool:
    """Return whether every listed input has a record."""
    inputs = directory / INPUTS
    return own_exists(inputs) and own_exists(directory / JOURNAL) and count_lines(inputs) == count_done(directory)


def inputs_changed(listing: Listing, list_inputs: ListInputs) -> bool:
    """Return whether the inputs that exist now differ from the listed ones, ignoring their captions."""
    current_items = iter(list_inputs())
    for listed in listing.items():
        current = next(current_items, None)
        if current is None or replace(current, caption=None) != replace(listed, caption=None):
            return True
    return next(current_items, None) is not None


def _remains_valid(record: Record, retry_failed: bool) -> bool:
    """Return whether the next pass keeps a record; existing captions are read again, because users may edit them."""
    return KEPT_EXISTING not in record.notes and (record.error is None or not retry_failed)


def _repair_journal(directory: Path) -> None:
    """Remove what a crash left at the end of the journal, if there is one."""
    if own_exists(directory / JOURNAL):
        Journal(directory / JOURNAL).close()


def _replace_listing(directory: Path, list_inputs: ListInputs, written: WrittenTexts) -> None:
    sign = partial(sign_listing, directory)
    if not own_exists(directory / INPUTS):
        write_listing(directory / INPUTS, list_inputs(), sign)
        return
    captions = WrittenCaptions(directory / JOURNAL, Listing(directory / INPUTS), directory / WRITTEN, written)
    with closing(captions):
        write_listing(directory / _NEXT, map(captions.restore, list_inputs()), sign)
    finish_interrupted_start(directory)
