"""Parts of an output: files that appear one after another, each when it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..state.atomic_files import partial_path, publish, sync_directory, sync_file
from .base import Mark, Target


class Parts:
    """The files that one output has published in a directory.

    Args:
        directory: made if need be.
        pattern: of the names that the output gives to its files; None where there is a single file, which may replace
            another.
        target: the output's, whose mark names the files that are whole.

    Attributes:
        names: of the files that are whole, in order; empty where one of those in the mark has vanished.
        finished: whether that is all of them.

    Raises:
        ValueError: there are files of such names, and no mark says that this job wrote them.
    """

    def __init__(self, directory: Path, pattern: str | None, target: Target) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        stale = _all_names(target.stale or {})
        if pattern and target.mark is None:
            _require_none(directory, pattern, stale)
        mark = target.mark or {}
        self.names: list[str] = list(mark.get("names", ()))
        self.finished = bool(mark.get("finished")) and mark["records"] == len(target.listing)
        self._stale: set[str] = {*mark.get("stale", ()), *stale}
        usable = self.finished or not mark.get("finished")
        if not usable or not all((directory / name).exists() for name in self.names):
            self._stale |= set(self.names)
            self.names, self.finished = [], False

    def partial(self, name: str) -> Path:
        """Return where a part is written until it is whole."""
        return partial_path(self.directory / name)

    def publish(self, name: str) -> None:
        """Give a part its name; it is written and closed."""
        sync_file(self.partial(name))
        publish(self.partial(name), self.directory / name)
        self.names.append(name)

    def finish(self) -> None:
        """Remove what an earlier job of the same name left; until now its parts were better than none."""
        for name in self._stale - set(self.names):
            (self.directory / name).unlink(missing_ok=True)
        sync_directory(self.directory)
        self._stale.clear()
        self.finished = True

    def mark(self, records: int, **more: Any) -> dict[str, Any]:
        """Return what is on the disk."""
        stale = {"stale": sorted(self._stale)} if self._stale else {}
        return {"records": records, "names": list(self.names), "finished": self.finished, **stale, **more}


def _all_names(mark: Mark) -> set[str]:
    return {*mark.get("names", ()), *mark.get("stale", ())}


def _require_none(directory: Path, pattern: str, own: set[str]) -> None:
    found = next((path for path in sorted(directory.glob(pattern)) if path.name not in own), None)
    if found is not None:
        raise ValueError(
            f"{found} is there already, and nothing says that this job wrote it: give another directory, or remove it"
        )
