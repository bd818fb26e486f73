"""A job: inputs are listed once, captions go into a journal in input order, and everything else is made of that.

Whatever ends it, the same job begun again goes on behind the last record that is on the disk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .captions import KEPT_EXISTING, merge_captions, needs_caption
from .engines import Engine
from .files import publish, whole_file
from .journal import Journal, matched, read_records, write_failed
from .listing import Listing, write_listing
from .prompting import PromptPlan
from .records import Item, Record
from .sinks import Sink
from .speed import SPEED_NAME, SpeedLog
from .tasks import Task

PREVIOUS = "previous.jsonl"  # the journal of the pass before this one: what did not fail in it stands
# Records are brought to the disk, and then to the outputs, at least so often.
GROUP_SECONDS, GROUP_RECORDS = 1.0, 256


class JobError(RuntimeError):
    """A job cannot begin or go on; the message says what to do."""


@dataclass(frozen=True)
class JobSummary:
    """What a job came to.

    Attributes:
        inputs: how many there are.
        captioned: by this run.
        kept: inputs whose existing caption stayed, in this run.
        failed: of all inputs.
        seconds: of this run.
        tokens: that this run's captions have.
        left_out: what outputs could not hold, and why; the first hundred of each.
        is_share: whether all this is about what one process of several did, and not about the job.
    """

    inputs: int
    captioned: int
    kept: int
    failed: int
    seconds: float
    tokens: int
    left_out: tuple[str, ...] = ()
    is_share: bool = False


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

    def listing(self, items: Callable[[], Iterable[Item]]) -> Listing:
        """Return the inputs, which are listed where they were not yet."""
        path = self.path("inputs.jsonl")
        if not path.exists():
            write_listing(path, items())
        return Listing(path)

    def forget(self) -> None:
        """Begin anew: remove what the job knows, captions that were made for equal pictures excepted."""
        for name in ("journal.jsonl", PREVIOUS, "inputs.jsonl", "failed.jsonl", "tasks.jsonl", SPEED_NAME):
            self.path(name).unlink(missing_ok=True)

    def retry_failed(self) -> None:
        """Let the job go over its inputs again for those that failed; nothing, where it is about that already."""
        journal = self.path("journal.jsonl")
        if journal.exists() and not self.path(PREVIOUS).exists():
            Journal(journal).close()  # which cuts off what a crash left behind
            publish(journal, self.path(PREVIOUS))

    def describe(self, description: Mapping[str, Any]) -> None:
        """Note what the job is."""
        with whole_file(self.path("job.json")) as file:
            file.write(json.dumps(description, indent=2, sort_keys=True).encode())

    def _check(self) -> None:
        path = self.path("job.json")
        if self._description is None or not path.exists():
            return
        stated = json.loads(path.read_text(encoding="utf-8"))
        names = sorted({*stated, *self._description})
        changed = [name for name in names if stated.get(name) != self._description.get(name)]
        if changed:
            name = changed[0]
            raise JobError(
                f"{self.directory} belongs to another job: its {name} is {stated.get(name)!r:.200}, now "
                f"{self._description.get(name)!r:.200}. Run the command as it was to go on, with --restart to begin "
                "anew, or with another --state or --out"
            )


class CaptionJob:
    """Takes every input of a job to its record.

    Args:
        state: the job's directory, entered.
        listing: its inputs.
        plan: what is asked.
        existing: what becomes of captions that are there already; a key of captions.MODES.
        sinks: the outputs.
        watch: told of every record that is done, as it is written.
    """

    def __init__(
        self,
        state: JobState,
        listing: Listing,
        plan: PromptPlan,
        existing: str,
        sinks: Sequence[Sink],
        watch: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.state, self.listing, self.plan, self.existing = state, listing, plan, existing
        self.sinks, self.watch = sinks, watch
        self._pending: list[Record] = []  # in the journal, and perhaps not on the disk
        self._last = time.monotonic()

    def run(self, engine: Callable[[], Engine]) -> JobSummary:
        """Caption what has no record yet, and publish the outputs.

        Args:
            engine: makes the engine; not called where nothing is left to do.

        Raises:
            OSError: the disk is full, say; what is on it stays, and the job can be begun again.
            JournalError: the journal was damaged by something other than a crash.
        """
        begun, counts = time.perf_counter(), {"captioned": 0, "kept": 0, "tokens": 0}
        with Journal(self.state.path("journal.jsonl")) as journal:
            self._speed = SpeedLog(self.state.path(SPEED_NAME))
            if journal.count < len(self.listing):
                for record, is_new in self._records(engine, journal.count):
                    counts["kept"] += KEPT_EXISTING in record.notes
                    if is_new:
                        counts["captioned"] += record.error is None
                        counts["tokens"] += sum(record.tokens)
                    self._append(journal, record)
                self._write_out(journal)
            failed = write_failed(journal, self.state.path("failed.jsonl"))
        for sink in self.sinks:
            sink.finish()
        self.state.path(PREVIOUS).unlink(missing_ok=True)
        return JobSummary(
            len(self.listing),
            counts["captioned"],
            counts["kept"],
            failed,
            time.perf_counter() - begun,
            counts["tokens"],
            tuple(reason for sink in self.sinks for reason in sink.left_out),
        )

    def _records(self, engine: Callable[[], Engine], start: int) -> Iterator[tuple[Record, bool]]:
        """Yield the records from number `start` on, in order, and whether an engine made them."""
        has_work = any(settled is None for _, settled in self._inputs(start))
        made = engine().run(self._tasks(start)) if has_work else iter(())
        waiting: dict[int, Record] = {}  # done before an earlier one
        for item, settled in self._inputs(start):
            if settled is not None:
                yield settled, False
                continue
            while item.number not in waiting:
                record = next(made, None)
                if record is None:
                    raise JobError(f"the engine gave no record of {item.source}; run the command again to go on")
                waiting[record.number] = record
            yield self._joined(item, waiting.pop(item.number)), True

    def _tasks(self, start: int) -> Iterator[Task]:
        """What an engine has to do, from number `start` on."""
        for item, settled in self._inputs(start):
            if settled is None:
                questions = self.plan.questions(item)
                styles = tuple(None if question.style is None else question.style.name for question in questions)
                yield Task(item, tuple(question.text for question in questions), styles)

    def _inputs(self, start: int) -> Iterator[tuple[Item, Record | None]]:
        """Yield the inputs from number `start` on, each with its record where no model is needed for it."""
        previous = self.state.path(PREVIOUS)
        before = read_records(previous, start) if previous.exists() else iter(())
        for item in self.listing.items(start):
            record = next(before, None)
            if record is not None:
                matched(item, record, previous)
            yield item, self._settled(item) if record is None or record.error is not None else record

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
        self.watch(record)
        if len(self._pending) >= GROUP_RECORDS or time.monotonic() - self._last > GROUP_SECONDS:
            self._write_out(journal)

    def _write_out(self, journal: Journal) -> None:
        """Bring what waits to the disk: to the journal first, to the outputs then."""
        journal.flush()
        for sink in self.sinks:
            for record in self._pending:
                sink.write(record)
            sink.flush()
        self._speed.note(len(self._pending), sum(sum(record.tokens) for record in self._pending))
        self._pending.clear()
        self._last = time.monotonic()
