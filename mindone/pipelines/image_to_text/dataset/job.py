"""The job: list the inputs once, write captions to a journal in input order, and derive all outputs from it.

However a job ends, running it again resumes after the last record on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .executors.base import Executor
from .near_equal import Inputs, NearEqualInputs
from .options import NamedText
from .prompts.plan import PromptPlan
from .prompts.variables import fill, has_variables
from .rules.retries import breaks_rules, broken_rules, fault_error
from .state.atomic_files import atomic_write, count_lines
from .state.bounded_reading import read_json
from .state.existing_captions import KEPT_EXISTING, merge_captions, needs_caption
from .state.job_description import SettingsChangedError, changed_settings, model_files, same_results
from .state.journal import Journal, write_failed
from .state.listing import Listing
from .state.paths import (
    FAILED,
    IMAGE_HASHES,
    INPUTS,
    JOB,
    JOURNAL,
    LOCK,
    PREVIOUS,
    RESTARTED,
    REVIEWS,
    SKIPPED,
    SPEED_LOG,
    TOKEN_COUNTS,
    WRITTEN,
)
from .state.previous_run import PreviousRecords
from .state.records import Item, JobError, JobRunningError, JobSummary, Record
from .state.regular_files import own_exists, pin_directory, remove_own
from .state.resume import count_answers, count_done, finish_interrupted_start
from .state.reviews import Reviews
from .state.signature import (
    check_files,
    description_digest,
    has_state,
    is_job_signed,
    is_listing_signed,
    is_signed,
    not_signed,
    require_signature,
    sign_directory,
    sign_job,
)
from .state.skipped import read_skipped
from .state.speed_log import SpeedLog
from .state.tasks import Task
from .state.token_counts import TokenCounts
from .writers import Finisher, FollowingWriter, Wording, excess_notes

# The journal and then the outputs are flushed to disk at least this often.
GROUP_SECONDS, GROUP_RECORDS = 1.0, 256
EMPTY = "the model's answer is empty"  # error of a record


class JobState(AbstractContextManager["JobState"]):
    """The directory with everything that a job needs to resume. Only one process at a time can enter it.

    Args:
        directory: absolute path; created if it does not exist.
        description: the job's settings as JSON values; a job that has records can only be resumed with the same. None
            skips the check.
        adopt: called, while the directory is locked, if there is state that no job of this user made here; it has to
            check and sign it. None rejects such state.
        retries_failed: whether the job captions only the inputs that failed, which it may do with other rules.
        on_listing: called with the number of listed inputs so far, while they are listed or their file is read.

    Raises:
        JobError: another process is working on the job, or its state is not signed (see `state/signature.py`) or has
            links.
        SettingsChangedError: the directory belongs to a job that has records, or answers, made with other settings.
    """

    def __init__(
        self,
        directory: Path,
        description: Mapping[str, Any] | None = None,
        adopt: Callable[[JobState], None] | None = None,
        retries_failed: bool = False,
        on_listing: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.on_listing = on_listing
        self._retries_failed = retries_failed
        self.directory, self._description, self._adopt = directory, json.loads(json.dumps(description)), adopt
        self._stack = ExitStack()

    def __enter__(self) -> JobState:
        with ExitStack() as stack:
            if os.path.lexists(self.directory):
                self._check_signature()  # before anything is written, the lock file among it
            stack.enter_context(pin_directory(self.directory))
            self._acquire_lock(stack)
            self._take_over()
            self._check_description()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _check_signature(self) -> None:
        if self._adopt is None:
            require_signature(self.directory)
        else:
            check_files(self.directory)

    def _acquire_lock(self, stack: ExitStack) -> None:
        lock = FileLock(self.directory / LOCK)
        try:
            lock.acquire(timeout=1)  # msrun's other ranks test the lock, and may hold it for a moment
        except Timeout:
            raise JobRunningError(
                f"another process is working on this job ({self.directory}): wait until it has finished, or use "
                "another state directory (state, --state)"
            ) from None
        stack.callback(lock.release)

    def _take_over(self) -> None:
        """Sign a new directory; check that the state in it is this user's, or adopt it."""
        self._check_signature()
        if not has_state(check_files(self.directory)):
            sign_directory(self.directory)
            return
        finish_interrupted_start(self.directory)
        if is_signed(self.directory) and self._is_listing_signed():
            return
        if self._adopt is None:
            raise JobError(not_signed(self.directory))
        self._adopt(self)

    def _is_listing_signed(self) -> bool:
        if not own_exists(self.path(INPUTS)):
            return True
        digest = hashlib.sha256()
        count_lines(self.path(INPUTS), digest, self.on_listing)
        return is_listing_signed(self.directory, digest.digest())

    def inspect(self) -> None:
        """Check what entering checks, without a lock and without writing anything; errors as of entering."""
        if os.path.lexists(self.directory):
            self._check_signature()
            self._check_description()

    def path(self, name: str) -> Path:
        """Return the path of a file in the directory."""
        return self.directory / name

    def update_description(self, description: Mapping[str, Any]) -> None:
        """Store settings that a job may be resumed with, if they differ from the stored ones."""
        if self._stored_description() != json.loads(json.dumps(description)):
            self.describe(description)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Store the job's settings; `sign_description` signs them."""
        with atomic_write(self.path(JOB)) as file:
            file.write(json.dumps(description, indent=2, sort_keys=True).encode())

    def sign_description(self, description: Mapping[str, Any]) -> None:
        """Sign settings, those of this call, so that `signed_description` returns them later if they are stored."""
        digest = description_digest(description)
        if not is_job_signed(self.directory, digest):
            sign_job(self.directory, digest)

    def signed_description(self) -> dict[str, Any]:
        """Return the stored settings.

        Raises:
            JobError: there are none, or no job of this user stored them.
        """
        stored = self._stored_description()
        if not stored or not is_job_signed(self.directory, description_digest(stored)):
            raise JobError(
                f"{self.path(JOB)} is missing, was changed, or is from an older version, and it names the files to "
                "write: run the same caption-dataset command again"
            )
        return stored

    def stored_model_files(self) -> dict[str, str]:
        """Return what the stored settings say about the content of the model's files, by part."""
        return model_files(self._stored_description())

    def is_described_by(self, description: Mapping[str, Any]) -> bool:
        """Return whether the stored settings are equal to these, except for those that may change."""
        return same_results(self._stored_description(), json.loads(json.dumps(description)), self._retries_failed)

    def _stored_description(self) -> dict[str, Any]:
        path = self.path(JOB)
        if not own_exists(path):
            return {}
        stored = read_json(path)
        return stored if isinstance(stored, dict) else {}

    def _check_description(self) -> None:
        stored = self._stored_description()
        if self._description is None or same_results(stored, self._description, self._retries_failed):
            return
        records, answers = count_done(self.directory), count_answers(self.directory)
        if not (records or answers or self.path(PREVIOUS).exists()):
            return
        if not stored:
            raise JobError(
                f"{self.path(JOB)} is missing or damaged, so the settings of what the job has ({records} inputs with "
                f"results, {answers} answers) are unknown, and nothing was changed. Restore the file, choose another "
                "out (--out) or state (--state), or add restart (--restart) to caption all inputs again"
            )
        changes = changed_settings(stored, self._description)
        existing = self._description.get("existing", "skip")
        raise SettingsChangedError(self.directory, records, changes, existing, answers)


class CaptionJob:
    """Makes a record for every input of a job, and writes the outputs.

    Args:
        state: the job's state directory, entered.
        listing: the inputs.
        plan: the prompts.
        existing: what to do with existing captions; a key of `existing_captions.MODES`.
        writers: the outputs.
        on_record: called with every finished record.
        begin_with: text that captions begin with; may contain variables.
        wording: what is done to captions when they are written.
        on_fault: what to do with captions that break a rule: a value of `options.FAULT_MODES`.
        find_near_equal: finds the near-equal inputs, given a function that yields the inputs from a number on; None if
            they do not matter.
        texts: the named texts, which have plans and settings of their own.
    """

    def __init__(
        self,
        *,
        state: JobState,
        listing: Listing,
        plan: PromptPlan,
        existing: str,
        writers: Sequence[FollowingWriter],
        on_record: Callable[[Record], None] = lambda record: None,
        begin_with: str = "",
        wording: Wording = Wording(),  # noqa: B008  frozen
        on_fault: str = "keep",
        find_near_equal: Callable[[Inputs], NearEqualInputs] | None = None,
        texts: Sequence[NamedText] = (),
    ) -> None:
        self.texts = texts
        self.wording, self.on_fault, self._find_near_equal = wording, on_fault, find_near_equal
        self.state, self.listing, self.plan, self.existing = state, listing, plan, existing
        self.begin_with = begin_with
        self.writers, self.on_record = writers, on_record
        self._near: NearEqualInputs | None = None
        self._pending: list[Record] = []  # appended to the journal, but perhaps not on disk yet
        self._last_flush = time.monotonic()

    def run(self, make_executor: Callable[[], Executor]) -> JobSummary:
        """Caption all inputs without a record, and complete the outputs.

        Args:
            make_executor: constructs the executor; not called if there is nothing to caption.

        Raises:
            OSError: for example, the disk is full. What is on disk remains, and the job can be resumed.
            JournalError: the journal was damaged by something other than a crash.
        """
        started, counts = time.perf_counter(), {"captioned": 0, "kept": 0, "tokens": 0, "breaking_rules": 0}

        usage: Counter[str] = Counter()

        def count(record: Record) -> None:
            usage.update(record.usage)
            is_made = record.error is None and KEPT_EXISTING not in record.notes
            counts["breaking_rules"] += bool(record.rejected) or (is_made and breaks_rules(record.notes))

        self._previous = PreviousRecords(self.state.path(PREVIOUS))
        with ExitStack() as stack:
            stack.enter_context(closing(self._previous))
            journal = stack.enter_context(Journal(self.state.path(JOURNAL)))
            self._speed = SpeedLog(self.state.path(SPEED_LOG))
            if journal.count < len(self.listing):
                self._near = self._near_equal(journal, stack)
                for record, is_new in self._records(make_executor, journal.count):
                    counts["kept"] += KEPT_EXISTING in record.notes
                    if is_new:
                        counts["captioned"] += record.error is None
                        counts["tokens"] += record.new_tokens
                    self._append(journal, record)
                self._flush(journal)
            failed = self._finish(journal, count)
        for name in (PREVIOUS, RESTARTED, WRITTEN, IMAGE_HASHES):
            remove_own(self.state.path(name))
        return JobSummary(
            inputs=len(self.listing),
            captioned=counts["captioned"],
            kept=counts["kept"],
            failed=failed,
            seconds=time.perf_counter() - started,
            tokens=counts["tokens"],
            breaking_rules=counts["breaking_rules"],
            state=str(self.state.directory),
            left_out=tuple(reason for writer in self.writers for reason in writer.left_out),
            skipped=read_skipped(self.state.path(SKIPPED)),
            usage=dict(usage),
        )

    def _finish(self, journal: Journal, on_record: Callable[[Record], None]) -> int:
        """Complete all outputs with the same reviews, and return the number of failed records."""
        path = self.state.path(FAILED)
        with closing(Reviews(self.state.path(REVIEWS))) as reviews:
            finisher = Finisher(reviews, self.wording)
            counts = TokenCounts()
            finish = finisher.counting(counts)
            failed = write_failed(journal, path, on_record, finish)
            for writer in self.writers:
                writer.finish()
            while reviews.refresh():  # people reviewed captions meanwhile, perhaps after the first output was complete
                counts.clear()
                failed = write_failed(journal, path, reviewed=finish)
                for writer in self.writers:
                    writer.finish()
            counts.write(self.state.path(TOKEN_COUNTS))
        return failed

    def _records(self, make_executor: Callable[[], Executor], start: int) -> Iterator[tuple[Record, bool]]:
        """Yield the records from number `start`, in input order, each with whether the executor made it."""
        made = make_executor().run(self._tasks(start)) if any(True for _ in self._tasks(start)) else iter(())
        waiting: dict[int, Record] = {}  # finished before the record of an earlier input
        for item, settled in self._inputs(start):
            if settled is not None:
                record = replace(settled, place=item.place)
            elif self._near is not None and self._near.shares(item.number):
                record = self._near.shared(item)
            else:
                while item.number not in waiting:
                    finished = next(made, None)
                    if finished is None:
                        raise JobError(
                            f"the executor returned no record of {item.source}; run the job again to resume it"
                        )
                    waiting[finished.number] = finished
                record = self._merged(item, waiting.pop(item.number))
                record = record if self._near is None else self._near.noted(record)
            if self._near is not None:
                self._near.remember(record)
            yield record, settled is None

    def _near_equal(self, journal: Journal, stack: ExitStack) -> NearEqualInputs | None:
        """Return the near-equal inputs, with the records that an interrupted run made of those that others need."""
        if self._find_near_equal is None:
            return None
        near = stack.enter_context(closing(self._find_near_equal(self._inputs)))
        for record in journal.records():
            near.remember(record)
        return near

    def _tasks(self, start: int) -> Iterator[Task]:
        """Yield the tasks of the executor, from input number `start`."""
        for item, settled in self._inputs(start):
            if settled is None and not (self._near is not None and self._near.shares(item.number)):
                yield self._task(item)

    def _task(self, item: Item) -> Task:
        """Return the task of an input; raises a ValueError if the input lacks a value that a prompt needs."""
        if self.texts:
            return self._task_of_texts(item)
        questions = self.plan.questions(item)
        styles = tuple(None if question.style is None else question.style.name for question in questions)
        own = fill(self.begin_with, item) if has_variables(self.begin_with) else None
        return Task(item, tuple(question.text for question in questions), styles, own)

    def _task_of_texts(self, item: Item) -> Task:
        names = tuple(text.name for text in self.texts)
        steps = [text.plan.step(item, names[:index]) for index, text in enumerate(self.texts)]
        begins = [text.settings.begin_with for text in self.texts]
        return Task(
            item,
            tuple(step.text for step in steps),
            tuple(None if step.style is None else step.style.name for step in steps),
            texts=names,
            beginnings=tuple(fill(begin, item) if has_variables(begin) else None for begin in begins),
            needs=tuple(step.needs for step in steps),
        )

    def _inputs(self, start: int) -> Iterator[tuple[Item, Record | None]]:
        """Yield the inputs from number `start`, each with its record if that needs no model."""
        for item in self.listing.items(start):
            yield item, self._previous.get(item) or self._settled(item)

    def _settled(self, item: Item) -> Record | None:
        """Return the record of an input whose caption is kept, or whose prompt cannot be filled in."""
        names = tuple(text.name for text in self.texts)
        blank = Record(item.number, item.key, item.source, columns=item.columns, texts=names)
        if not needs_caption(self.existing, item.caption):
            return replace(blank, captions=((item.caption or "").strip(),), notes=(KEPT_EXISTING,))
        try:
            self._task(item)
        except ValueError as error:
            return replace(blank, error=str(error))
        return None

    def _merged(self, item: Item, record: Record) -> Record:
        """Return a record with the input's existing caption merged into the new ones; a failure if one is empty.

        With `on_fault` "fail", captions that break a rule are a failure too.
        """
        if self.texts:
            record = replace(record, texts=tuple(text.name for text in self.texts))
        begins = [text.settings.begin_with for text in self.texts] or [self.begin_with] * len(record.captions)
        for index, (caption, begin) in enumerate(zip(record.captions, begins, strict=False)):
            if record.error is None and caption.strip() in ("", fill(begin, item).strip()):
                name = f"{record.texts[index]}: " if record.texts else ""
                return replace(record, captions=(), error=f"{name}{EMPTY}", place=item.place)
        if self.on_fault == "fail" and record.error is None and breaks_rules(record.notes):
            reason = fault_error(broken_rules(record.notes))
            return replace(record, captions=(), rejected=record.captions, error=reason, place=item.place)
        captions = (merge_captions(self.existing, item.caption, caption) for caption in record.captions)
        merged = replace(record, captions=tuple(captions), place=item.place)
        excess = excess_notes(self.wording, merged) if self.on_fault == "fail" else []
        if excess:
            return replace(merged, captions=(), rejected=merged.captions, error=fault_error(excess))
        return merged

    def _append(self, journal: Journal, record: Record) -> None:
        journal.append(record)
        self._pending.append(record)
        self.on_record(record)
        if len(self._pending) >= GROUP_RECORDS or time.monotonic() - self._last_flush > GROUP_SECONDS:
            self._flush(journal)

    def _flush(self, journal: Journal) -> None:
        """Write pending records to disk: to the journal first, and then to the outputs."""
        journal.flush()
        for writer in self.writers:
            for record in self._pending:
                writer.write(record)
            writer.flush()
        made = [record for record in self._pending if not record.stands]
        self._speed.note(len(made), sum(record.new_tokens for record in made))
        self._pending.clear()
        self._last_flush = time.monotonic()
