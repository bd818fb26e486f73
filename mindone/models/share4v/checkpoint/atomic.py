"""A directory's new files are written aside and put in place together, so that no half-written checkpoint is seen."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .formats.directory import INDEXES, SINGLES

OURS_INDEX, OURS_SINGLE = INDEXES[0], SINGLES[0]
STAGING = ".writing-"
OUR_SHARDS = "model-*-of-*.safetensors"


@contextmanager
def staged(directory: str | Path) -> Iterator[Path]:
    """Give a scratch directory inside `directory`; on success its files move up, on failure they vanish.

    The weights that were there before are taken away first and an index comes last: whoever looks in between finds
    no checkpoint, never half of one. A process that is killed may leave its hidden `.writing-*` directory behind, which
    nothing reads and which may be deleted; none is deleted here, as another process may be writing it.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=directory))
    try:
        yield staging
        new = sorted(staging.iterdir(), key=lambda path: path.name in (OURS_INDEX, OURS_SINGLE))
        if any(path.suffix == ".safetensors" for path in new):
            _remove_weights(directory)
        for path in new:
            path.replace(directory / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_weights(directory: Path) -> None:
    for path in (directory / OURS_INDEX, directory / OURS_SINGLE, *directory.glob(OUR_SHARDS)):
        path.unlink(missing_ok=True)
