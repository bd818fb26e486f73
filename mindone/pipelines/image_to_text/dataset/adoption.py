"""Adoption: taking over the state of a job that was moved, copied, shared, or made by an older version.

Nothing in such a directory leads to a file afterwards: the inputs are listed again from what the caller names, and only
the texts of the old listing and of the journal are used, for inputs with the same numbers and keys. The outputs are
written again from the journal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .executors.work_queue import remove_queues
from .inference.caption_cache import delete_caption_caches
from .job import JobState
from .state.atomic_files import atomic_write
from .state.bounded_reading import read_json
from .state.listing import Listing, write_listing
from .state.paths import INPUTS, JOB, OLDER_ANSWERS, PROGRESS, TASKS
from .state.records import Item, JobError
from .state.regular_files import own_exists, remove_own
from .state.signature import sign_directory, sign_listing

# Settings with paths, which differ if a job was moved.
_PATHS = ("inputs", "out", "sources")


def adopt_state(state: JobState, list_inputs: Callable[[], Iterable[Item]], description: Mapping[str, Any]) -> None:
    """Check the state of a job and sign it; a crash meanwhile leaves it unsigned, and it can be adopted again.

    Args:
        state: the locked state directory; none of its files is a link.
        list_inputs: lists the inputs that exist now.
        description: the settings of this call, which replace the job's if only paths differ.

    Raises:
        JobError: the inputs are not those of the job, or its settings differ.
        ValueError: its listing is damaged.
        OSError: a file cannot be read or written.
    """
    directory = state.directory
    settings = _with_new_paths(directory, description)
    remove_queues(directory)
    delete_caption_caches(directory, (OLDER_ANSWERS,))  # the answers of this version are texts, as the journal's are
    remove_own(directory / TASKS)
    _forget_outputs(directory, description["out"])
    state.describe(settings)
    if not own_exists(directory / INPUTS):
        sign_directory(directory)
        return
    items = _matched(Listing(directory / INPUTS).items(), list_inputs(), directory)
    write_listing(directory / INPUTS, items, partial(sign_listing, directory))


def _with_new_paths(directory: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the job with the paths of this call."""
    stored: Any = {}
    if own_exists(directory / JOB):
        with suppress(ValueError):
            stored = read_json(directory / JOB)
    if not isinstance(stored, dict) or not stored:
        return dict(description)
    return {**stored, **{name: description[name] for name in _PATHS}}


def _forget_outputs(directory: Path, out: str | None) -> None:
    """Let every output be written again from the journal; of their progress, only the names of own files remain."""
    for path in directory.glob(PROGRESS):
        stored: Any = None
        with suppress(ValueError):
            stored = read_json(path)
        names = stored.get("names") if isinstance(stored, dict) else None
        names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        templates = {"templates": stored["templates"]} if isinstance(stored, dict) and "templates" in stored else {}
        with atomic_write(path) as file:  # `seen` beyond the journal's end: what is on disk is from before a restart
            file.write(json.dumps({"records": 0, "names": names, "seen": 2**62, "out": out, **templates}).encode())


def _matched(old: Iterable[Item], new: Iterable[Item], directory: Path) -> Iterator[Item]:
    """Yield the new items with the captions that the old ones had, which the job may have replaced meanwhile."""
    for before, now in zip_longest(old, new):
        if before is None or now is None or before.key != now.key:
            raise JobError(
                f"{directory} cannot be adopted: its listing has {_shown(before)} where the inputs now have "
                f"{_shown(now)}. Name the inputs of that job, without new or missing ones; add inputs afterwards. Or "
                "delete the directory to start over"
            )
        yield replace(now, caption=before.caption)


def _shown(item: Item | None) -> str:
    return "no further input" if item is None else repr(item.key)
