"""speed.jsonl: the speed of a job over time; a separate file, because it differs from run to run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .bounded_reading import bounded_lines, parse_json
from .regular_files import open_own, own_exists


@dataclass(frozen=True)
class SpeedSample:
    """The work of one interval.

    Attributes:
        at: end of the interval, in seconds since 1970.
        seconds: length of the interval; 0 in the sample that marks the start of a run.
        records, tokens: number of records and tokens that were produced.
    """

    at: float
    seconds: float
    records: int
    tokens: int


class SpeedLog:
    """Appends samples to a file. Errors are ignored: a job must not fail because its speed cannot be logged.

    Args:
        path: path of the log; created if it does not exist. An incomplete line of an earlier run stays.
        clock: returns the seconds since 1970.
        timer: returns monotonic seconds.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "speed.jsonl"
        >>> timer = iter((0.0, 2.5))
        >>> SpeedLog(path, clock=lambda: 0.0, timer=lambda: next(timer)).note(3, 40)
        >>> list(read_speed_log(path))[1]
        SpeedSample(at=0.0, seconds=2.5, records=3, tokens=40)
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.time, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._clock, self._timer = path, clock, timer
        self._last = timer()
        self._write(SpeedSample(clock(), 0.0, 0, 0), "\n" if _ends_in_incomplete_line(path) else "")

    def note(self, records: int, tokens: int) -> None:
        """Log the work since the last call, or since this log was opened."""
        now = self._timer()
        self._write(SpeedSample(self._clock(), now - self._last, records, tokens))
        self._last = now

    def _write(self, sample: SpeedSample, prefix: str = "") -> None:
        line = {
            "at": round(sample.at, 3),
            "seconds": round(sample.seconds, 3),
            "records": sample.records,
            "tokens": sample.tokens,
        }
        with suppress(OSError), open_own(self._path, "ab+") as file:
            file.write(f"{prefix}{json.dumps(line)}\n".encode())


def read_speed_log(path: Path) -> Iterator[SpeedSample]:
    """Yield the samples of a log; malformed lines are skipped, and a missing file has no samples."""
    if not own_exists(path):
        return
    with open_own(path) as file:
        for line in bounded_lines(file, path):
            with suppress(ValueError, KeyError, TypeError, OverflowError):
                row = parse_json(line)
                yield SpeedSample(float(row["at"]), float(row["seconds"]), int(row["records"]), int(row["tokens"]))


def _ends_in_incomplete_line(path: Path) -> bool:
    with suppress(OSError), open_own(path) as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            return file.read() != b"\n"
    return False
