"""speed.jsonl: how fast a job was, noted as it goes; a file of its own, since it differs from run to run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SPEED_LOG_NAME = "speed.jsonl"


@dataclass(frozen=True)
class SpeedSample:
    """What was done in a while.

    Attributes:
        at: when it ended, in seconds since 1970.
        seconds: how long it was; 0 for the mark that a run begins with.
        records, tokens: made in it.
    """

    at: float
    seconds: float
    records: int
    tokens: int


class SpeedLog:
    """Appends what was done since the last note. It is worth no failure: what cannot be written is left out.

    Args:
        path: made if there is nothing; a line that an earlier run left torn stays as it is.
        clock: seconds since 1970.
        timer: seconds that only grow.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / SPEED_LOG_NAME
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
        self._write(SpeedSample(clock(), 0.0, 0, 0), "\n" if _is_torn(path) else "")

    def note(self, records: int, tokens: int) -> None:
        """Note what was done since the last note, or since this log was opened."""
        now = self._timer()
        self._write(SpeedSample(self._clock(), now - self._last, records, tokens))
        self._last = now

    def _write(self, stretch: SpeedSample, before: str = "") -> None:
        line = {
            "at": round(stretch.at, 3),
            "seconds": round(stretch.seconds, 3),
            "records": stretch.records,
            "tokens": stretch.tokens,
        }
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{before}{json.dumps(line)}\n")


def read_speed_log(path: Path) -> Iterator[SpeedSample]:
    """Yield a log's stretches; lines that are torn are passed over, and no file is an empty one."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                yield SpeedSample(float(row["at"]), float(row["seconds"]), int(row["records"]), int(row["tokens"]))


def _is_torn(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            return file.read() != b"\n"
    return False
