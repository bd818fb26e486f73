"""What every output works with: its options, what a job gives to it, and what it must do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..state.listing import Listing
from ..state.records import Item, Record

Mark = Mapping[str, Any]  # what an output has on the disk, JSON-able; "records" says from where on it wants more


@dataclass(frozen=True)
class WriterOptions:
    """How results are written.

    Attributes:
        shard_size: records of a Parquet part, or samples of a WebDataset shard that has no input shard to follow.
        seconds: whether rows say how long a caption took, which differs from run to run.
        folder: of the data, to which the paths in Open-Sora's files are relative; by default what all inputs share.

    Raises:
        ValueError: shard_size is less than 1.
    """

    shard_size: int = 10_000
    seconds: bool = False
    folder: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shard_size, int) or self.shard_size < 1:
            raise ValueError(f"shard_size must be an integer of at least 1, got {self.shard_size!r}")


@dataclass(frozen=True)
class Target:
    """What an output is made from.

    Attributes:
        out: file or directory that the caller named, or None.
        options: how it is written.
        listing: the job's inputs.
        mark: what the output said when its job was last interrupted; None where it is to begin anew.
        stale: what it said before the job was begun anew, if it was.
    """

    out: str | None
    options: WriterOptions
    listing: Listing
    mark: Mark | None = None
    stale: Mark | None = None

    def file(self, suffix: str, name: str) -> Path:
        """Return the output's file: `out` if it ends so, else a file of that name in the directory `out`.

        Raises:
            ValueError: there is no `out`, or it is a file of another kind.
        """
        out = Path(self._directory_or_file(suffix))
        return out if out.suffix.lower() == suffix and not out.is_dir() else out / name

    def directory(self, what: str) -> Path:
        """Return the output's directory; errors as in `file`."""
        out = Path(self._directory_or_file(""))
        if out.suffix.lower() in FILE_SUFFIXES and not out.is_dir():
            raise ValueError(f"{out} is the name of a file, and {what} need a directory: give one as out")
        return out

    def _directory_or_file(self, suffix: str) -> str:
        if self.out is None:
            raise ValueError("out must name a file or a directory; only captions beside the pictures need none")
        found = Path(self.out).suffix.lower()
        if suffix and found in FILE_SUFFIXES and found != suffix and not Path(self.out).is_dir():
            raise ValueError(
                f"{self.out} ends in {found}, expected {suffix}; for several formats give a directory as out"
            )
        return self.out


FILE_SUFFIXES = (".jsonl", ".parquet", ".csv", ".json", ".tar")


class Writer(Protocol):
    """One form of output; made with a Target.

    Attributes:
        start: number of the first record it wants.
        left_out: what could not be written, and why; the first hundred.
    """

    start: int
    left_out: list[str]

    def write(self, item: Item, record: Record) -> None:
        """Take the next record; nothing need be on the disk before `flush`.

        Raises:
            OSError: the disk is full, say; the last mark still holds.
        """

    def flush(self) -> Mark:
        """Bring what was taken to the disk, as far as the form allows, and return what is there."""

    def finish(self) -> Mark:
        """Give everything its final name; the last call."""


class Sink(Protocol):
    """An output as a job sees it."""

    @property
    def left_out(self) -> list[str]:
        """What could not be written, and why; the first hundred."""

    def write(self, record: Record) -> None:
        """Take a record that is in the journal, in input order; one that was taken before changes nothing."""

    def flush(self) -> None:
        """Bring what was taken to the disk."""

    def finish(self) -> None:
        """Publish: all records are in the journal."""


def note(left_out: list[str], item: Item, reason: str) -> None:
    """Remember what was left out, as far as a hundred of them."""
    if len(left_out) < 100:
        left_out.append(f"{item.source}: {reason}")
