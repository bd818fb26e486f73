"""Atomic writing of checkpoints: new files appear together, so that no incomplete checkpoint is visible."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .formats.weight_files import INDEXES, SINGLES

OURS_INDEX, OURS_SINGLE = INDEXES[0], SINGLES[0]
STAGING = ".writing-"
OUR_SHARDS = "model-*-of-*.safetensors"


@contextmanager
def staged(directory: str | Path) -> Iterator[Path]:
    """Yield a staging directory inside `directory`; on success its files move to `directory`, else they are deleted.

    Weights that existed before are removed first and the index is moved last, so a reader in between finds no
    checkpoint rather than an incomplete one. A process that is killed leaves its hidden `.writing-*` directory behind;
    nothing reads it and it may be deleted. It is not deleted here, since another process may be writing it.
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
