"""Parts: output files that appear one after another in a directory, each when it is complete."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..state.atomic_files import partial_path, publish, sync_directory, sync_file
from ..state.regular_files import remove_own
from .base import Progress, Target


class Parts:
    """The complete files of one output.

    Args:
        directory: created if it does not exist.
        pattern: glob pattern of the output's file names; None for a single file, which may replace an existing one.
        target: of the writer; its progress names the complete files.

    Attributes:
        names: of the complete files, in order; empty if one that the progress names has been deleted.
        finished: whether the output is complete.

    Raises:
        ValueError: files that match the pattern exist, and no progress says that this job wrote them.
    """

    def __init__(self, directory: Path, pattern: str | None, target: Target) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        stale = _own_names(target.stale or {}, pattern, target)
        if pattern and target.progress is None:
            _check_no_other_files(directory, pattern, stale)
        progress = target.progress or {}
        own = _own_names(progress, pattern, target)
        self.names: list[str] = [name for name in progress.get("names", ()) if name in own]
        self.finished = bool(progress.get("finished")) and progress["records"] == len(target.listing)
        self._stale: set[str] = (own - {*self.names}) | stale
        is_usable = self.finished or not progress.get("finished")
        if not is_usable or not all((directory / name).exists() for name in self.names):
            self._stale |= set(self.names)
            self.names, self.finished = [], False

    def partial(self, name: str) -> Path:
        """Return where a part is written until it is complete."""
        return partial_path(self.directory / name)

    def publish(self, name: str) -> None:
        """Rename a part to its final name; it must have been written and closed."""
        sync_file(self.partial(name))
        publish(self.partial(name), self.directory / name)
        self.names.append(name)

    def finish(self) -> None:
        """Delete the parts of the job before it was restarted; they are kept until the new ones are complete."""
        for name in self._stale - set(self.names):
            remove_own(self.directory / name)
        sync_directory(self.directory)
        self._stale.clear()
        self.finished = True

    def progress(self, records: int, **more: Any) -> dict[str, Any]:
        """Return what is on disk."""
        stale = {"stale": sorted(self._stale)} if self._stale else {}
        return {"records": records, "names": list(self.names), "finished": self.finished, **stale, **more}


def _own_names(progress: Progress, pattern: str | None, target: Target) -> set[str]:
    """Return the files that a progress names, which may be deleted; a path, or another file's name, is not one."""
    names = {*progress.get("names", ()), *progress.get("stale", ())}
    if pattern is None:
        return names & {target.path().name}
    return {name for name in names if Path(name).name == name and fnmatch(name, pattern)}


def _check_no_other_files(directory: Path, pattern: str, own: set[str]) -> None:
    found = next((path for path in sorted(directory.glob(pattern)) if path.name not in own), None)
    if found is not None:
        raise ValueError(
            f"{found} already exists, and this job did not write it: choose another directory, or delete the file"
        )
