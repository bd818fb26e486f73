"""The status of a job for scripts: how far it is, how long it will take, and what failed."""

from __future__ import annotations

import os
from collections import deque
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..state.atomic_files import count_lines, is_locked, lines_from
from ..state.bounded_reading import read_json
from ..state.paths import INPUTS, JOURNAL, LOCK, PROGRESS, SPEED_LOG
from ..state.records import record_from_line
from ..state.regular_files import own_exists
from ..state.speed_log import SpeedSample, read_speed_log
from ..writers.stored_finisher import stored_finisher
from .report import find_state
from .streaming_stats import TopCounts
from .summary import common_reason

_WINDOW_SECONDS = 600.0  # of working time, over which the rate is measured
_MAX_REASONS = 100
_SUCCESS = b'"error":null'


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """How far a job is.

    Attributes:
        state: "running" (a process works on it), "finished" (all inputs have a record, and all outputs are complete) or
            "stopped" (the same command resumes it).
        done: number of inputs that have a record in the current pass over the inputs.
        total: number of inputs; None while they are listed.
        failed: number of inputs that failed, as the summary of the job counts them: also those that a person rejected,
            or whose captions fit into no template or budget.
        failures: reason, without names and numbers -> number of inputs; the 100 most frequent.
        rate: inputs per second in the last ten minutes of work of the last run; None if it is not known yet.
        seconds_left: estimated duration of the rest; 0 for a finished job, None if there is no rate or nobody works.
        directory: the job's state directory.

    Example:
        >>> from mindone.pipelines.image_to_text import job_status
        >>> status = job_status("captions.jsonl")  # doctest: +SKIP
        >>> status.state, status.done, status.total  # doctest: +SKIP
        ('running', 120, 5000)
    """

    state: str
    done: int
    total: int | None
    failed: int
    failures: dict[str, int] = field(default_factory=dict)
    rate: float | None = None
    seconds_left: float | None = None
    directory: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self)


def job_status(out: str | os.PathLike[str]) -> JobStatus:
    """Return the status of a job, while it runs or after. Nothing is written, and the job is not disturbed.

    Args:
        out: output of the job, its state directory, or the folder that it captioned.

    Raises:
        ReportError: (a ValueError) there is no such job.
        ValueError: the journal is damaged.
        OSError: a file cannot be read.
    """
    state = find_state(out, (JOURNAL, LOCK))  # there is no journal while the inputs are listed
    is_running = is_locked(state / LOCK)
    done, reasons = _count(state)
    # Counted after the journal: the listing of a new pass comes first.
    total = count_lines(state / INPUTS) if own_exists(state / INPUTS) else None
    is_complete = total is not None and done >= total and _are_closed(state, done)
    rate = _rate(state)
    left = None
    if is_complete and not is_running:
        left = 0.0
    elif is_running and rate and total is not None:
        left = round(max(total - done, 0) / rate, 1)
    return JobStatus(
        state="running" if is_running else "finished" if is_complete else "stopped",
        done=done,
        total=total,
        failed=reasons.total,
        failures=dict(reasons.most_common(_MAX_REASONS)),
        rate=None if rate is None else round(rate, 3),
        seconds_left=left,
        directory=str(state),
    )


def _count(state: Path) -> tuple[int, TopCounts]:
    """Return the number of records, and the reasons of failures."""
    done, reasons = 0, TopCounts(500)
    journal = state / JOURNAL
    stored = stored_finisher(state)
    with closing(stored.finisher.reviews):
        for line in lines_from(journal) if own_exists(journal) else ():
            if not line.endswith(b"\n"):  # it is being written
                break
            done += 1
            # Most lines are not parsed. What comes before the error are texts, whose quotes JSON escapes, so that the
            # first one that reads so is the error itself.
            if not stored.changes_failures and line.startswith(_SUCCESS, line.find(b'"error":')):
                continue
            try:
                record = record_from_line(line)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{journal}, line {done}: not a record ({error}); the journal is damaged there"
                ) from error
            record = stored.finisher.finish(record)
            if record.error is not None:
                reasons.add(common_reason(record))
    return done, reasons


def _are_closed(state: Path, done: int) -> bool:
    """Return whether all outputs are complete."""
    for path in state.glob(PROGRESS):
        try:
            stored = read_json(path)
        except ValueError:
            return False
        if not isinstance(stored, dict) or not stored.get("closed") or stored.get("seen") != done:
            return False
    return True


def _rate(state: Path) -> float | None:
    """Return the inputs per second in the last minutes of the last run, loading the model included at its start."""
    samples: deque[SpeedSample] = deque()
    seconds = 0.0
    for sample in read_speed_log(state / SPEED_LOG):
        if not sample.seconds:  # another run
            samples.clear()
            seconds = 0.0
            continue
        samples.append(sample)
        seconds += sample.seconds
        while seconds - samples[0].seconds >= _WINDOW_SECONDS:
            seconds -= samples.popleft().seconds
    records = sum(sample.records for sample in samples)
    return records / seconds if records and seconds else None
