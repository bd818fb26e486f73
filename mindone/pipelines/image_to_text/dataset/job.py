"""A job: inputs are listed once, captions go into a journal in input order, and everything else is made of that.

Whatever ends it, the same job begun again goes on behind the last record that is on the disk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .executors.base import Executor
from .prompts.plan import PromptPlan
from .state.atomic_files import atomic_write
from .state.existing_captions import KEPT_EXISTING, merge_captions, needs_caption
from .state.journal import Journal, write_failed
from .state.listing import Listing
from .state.previous_run import PreviousRecords
from .state.records import Item, JobError, JobSummary, Record
from .state.resume import JOURNAL, PREVIOUS
from .state.speed_log import SPEED_LOG_NAME, SpeedLog
from .state.tasks import Task
from .writers import Sink

RESTARTED = "restarted"  # there while the job that --restart began is not done: the same command again goes on
# Records are brought to the disk, and then to the outputs, at least so often.
GROUP_SECONDS, GROUP_RECORDS = 1.0, 256


class JobState(AbstractContextManager["JobState"]):
    """The directory in which a job keeps what it needs to go on. Only one process at a time has it.

    Args:
        directory: made if there is none.
        description: what the job is, JSON; a job that goes on must have the same. None takes whatever is there.

    Raises:
        JobError: another process works on it, or it belongs to another job.
    """

    def __init__(self, directory: Path, description: Mapping[str, Any] | None = None) -> None:
        self.directory, self._description = directory, json.loads(json.dumps(description))
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(directory / "lock")

    def __enter__(self) -> JobState:
        try:
            self._lock.acquire(timeout=1)  # msrun's other processes look whether it is held, and let go at once
        except Timeout:
            raise JobError(
                f"another process is working on this job ({self.directory}): wait until it is done, or give --state"
            ) from None
        try:
            self._check()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def path(self, name: str) -> Path:
        """A file of the job."""
        return self.directory / name

    def describe(self, description: Mapping[str, Any]) -> None:
        """Note what the job is."""
        with atomic_write(self.path("job.json")) as file:
            file.write(json.dumps(description, indent=2, sort_keys=True).encode())

    def is_described_by(self, description: Mapping[str, Any]) -> bool:
        """Whether this is what the job is."""
        return not _differences(self._stated(), json.loads(json.dumps(description)))

    def _stated(self) -> dict[str, Any]:
        path = self.path("job.json")
        stated: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return stated

    def _check(self) -> None:
        stated = self._stated()
        changed = _differences(stated, self._description) if stated and self._description is not None else []
        if changed:
            name, before, now = changed[0]
            raise JobError(
                f"{self.directory} belongs to another job: its {name} is {before!r:.200}, now {now!r:.200}. Run the "
                "command as it was to go on, with --restart to begin anew, or with another --state or --out"
            )


def _differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Return what differs between two descriptions, down to the single setting: its name, and what it was and is."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for one in sorted({*before, *now}):
            found += _differences(before.get(one), now.get(one), f"{name}.{one}" if name else one)
        return found
    return [] if before == now else [(name, before, now)]


class CaptionJob:
    """Takes every input of a job to its record.

    Args:
        state: the job's directory, entered.
        listing: its inputs.
        plan: what is asked.
        existing: what becomes of captions that are there already; a key of captions.MODES.
        sinks: the outputs.
        on_record: told of every record that is done, as it is written.
    """

    def __init__(
        self,
        state: JobState,
        listing: Listing,
        plan: PromptPlan,
        existing: str,
        sinks: Sequence[Sink],
        on_record: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.state, self.listing, self.plan, self.existing = state, listing, plan, existing
        self.sinks, self.on_record = sinks, on_record
        self._pending: list[Record] = []  # in the journal, and perhaps not on the disk
        self._last = time.monotonic()

    def run(self, executor: Callable[[], Executor]) -> JobSummary:
        """Caption what has no record yet, and publish the outputs.

        Args:
            executor: makes the executor; not called where nothing is left to do.

        Raises:
            OSError: the disk is full, say; what is on it stays, and the job can be begun again.
            JournalError: the journal was damaged by something other than a crash.
        """
        begun, counts = time.perf_counter(), {"captioned": 0, "kept": 0, "tokens": 0}
        previous = PreviousRecords(self.state.path(PREVIOUS))
        with closing(previous), Journal(self.state.path(JOURNAL)) as journal:
            self._previous = previous
            self._speed = SpeedLog(self.state.path(SPEED_LOG_NAME))
            if journal.count < len(self.listing):
                for record, is_new in self._records(executor, journal.count):
                    counts["kept"] += KEPT_EXISTING in record.notes
                    if is_new:
                        counts["captioned"] += record.error is None
                        counts["tokens"] += sum(record.tokens)
                    self._append(journal, record)
                self._write_out(journal)
            failed = write_failed(journal, self.state.path("failed.jsonl"))
        for sink in self.sinks:
            sink.finish()
        for name in (PREVIOUS, RESTARTED):
            self.state.path(name).unlink(missing_ok=True)
        return JobSummary(
            len(self.listing),
            counts["captioned"],
            counts["kept"],
            failed,
            time.perf_counter() - begun,
            counts["tokens"],
            tuple(reason for sink in self.sinks for reason in sink.left_out),
        )

    def _records(self, executor: Callable[[], Executor], start: int) -> Iterator[tuple[Record, bool]]:
        """Yield the records from number `start` on, in order, and whether the executor made them."""
        has_work = any(settled is None for _, settled in self._inputs(start))
        made = executor().run(self._tasks(start)) if has_work else iter(())
        waiting: dict[int, Record] = {}  # done before an earlier one
        for item, settled in self._inputs(start):
            if settled is not None:
                yield settled, False
                continue
            while item.number not in waiting:
                record = next(made, None)
                if record is None:
                    raise JobError(f"the executor gave no record of {item.source}; run the command again to go on")
                waiting[record.number] = record
            yield self._joined(item, waiting.pop(item.number)), True

    def _tasks(self, start: int) -> Iterator[Task]:
        """What the executor has to do, from number `start` on."""
        for item, settled in self._inputs(start):
            if settled is None:
                questions = self.plan.questions(item)
                styles = tuple(None if question.style is None else question.style.name for question in questions)
                yield Task(item, tuple(question.text for question in questions), styles)

    def _inputs(self, start: int) -> Iterator[tuple[Item, Record | None]]:
        """Yield the inputs from number `start` on, each with its record where no model is needed for it."""
        for item in self.listing.items(start):
            yield item, self._previous.get(item) or self._settled(item)

    def _settled(self, item: Item) -> Record | None:
        """Return the record of an input that has a caption, or cannot be asked about."""
        blank = Record(item.number, item.key, item.source, columns=item.columns)
        if not needs_caption(self.existing, item.caption):
            return replace(blank, captions=((item.caption or "").strip(),), notes=(KEPT_EXISTING,))
        try:
            self.plan.questions(item)
        except ValueError as error:
            return replace(blank, error=str(error))
        return None

    def _joined(self, item: Item, record: Record) -> Record:
        """Return a record with the input's existing caption joined to the new ones."""
        captions = (merge_captions(self.existing, item.caption, caption) for caption in record.captions)
        return replace(record, captions=tuple(captions))

    def _append(self, journal: Journal, record: Record) -> None:
        journal.append(record)
        self._pending.append(record)
        self.on_record(record)
        if len(self._pending) >= GROUP_RECORDS or time.monotonic() - self._last > GROUP_SECONDS:
            self._write_out(journal)

    def _write_out(self, journal: Journal) -> None:
        """Bring what waits to the disk: to the journal first, to the outputs then."""
        journal.flush()
        for sink in self.sinks:
            for record in self._pending:
                sink.write(record)
            sink.flush()
        made = [record for record in self._pending if not record.stands]
        self._speed.note(len(made), sum(sum(record.tokens) for record in made))
        self._pending.clear()
        self._last = time.monotonic()
