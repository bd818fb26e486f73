"""Jobs that crash at any step, are killed, or run out of disk space end with the outputs of an undisturbed job."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import png, run, tree, write_tar
from helpers.paths import HELPERS, ROOT

from mindone.pipelines.image_to_text.dataset.state import atomic_files
from mindone.pipelines.image_to_text.dataset.writers import WriterOptions


class Crash(BaseException):
    """Simulates the end of the process."""


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(number) if number != 3 else b"")
    (tmp_path / "photos" / "4.txt").write_text("Mine.")
    write_tar(tmp_path / "s.tar", [(f"{n}.png", png(10 + n)) for n in range(4)])
    return [tmp_path / "photos", tmp_path / "s.tar"]


OUTPUTS: list[tuple[str, str]] = [
    ("txt", "out"),
    ("jsonl", "out/a.jsonl"),
    ("parquet", "out"),
    ("parquet", "out/a.parquet"),
    ("webdataset", "out"),
]


@pytest.mark.parametrize(("name", "out"), OUTPUTS)
def test_a_crash_at_any_step_does_not_change_the_final_output(
    tmp_path: Path, inputs: list[Path], name: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fsync and every rename is a step; the process ends before or after it."""
    options = WriterOptions(shard_size=3)

    def job(place: Path) -> dict[str, bytes]:
        run(place / "state", inputs, [(name, place / out)], options, group=3)
        return tree(place / "out")

    whole = job(tmp_path / "whole")
    steps, limit = 0, 0

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == limit:
                raise Crash
            result = step(*arguments)
            if steps == -limit:
                raise Crash
            return result

        return taken

    monkeypatch.setattr(atomic_files, "_SYNC_THREADS", 1)  # one step after the other
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    job(tmp_path / "counted")
    total = steps
    assert total > 20
    for number in range(1, total + 1):
        for sign in (1, -1):
            place, steps, limit = tmp_path / f"{number}{sign}", 0, sign * number
            with pytest.raises(Crash):
                job(place)
            for path, data in tree(place / "out").items():
                assert path.endswith(".partial") or whole[path] == data, (number, sign, path)
            limit = 0
            assert job(place) == whole, (number, sign)
            assert job(place) == whole


def script(folder: Path, what: str, seed: int) -> int:
    """Run crashing.py in a process without MindSpore."""
    folder.mkdir()
    command = [sys.executable, str(HELPERS / "crashing.py"), str(ROOT), what, str(folder), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_job_killed_twenty_times(tmp_path: Path) -> None:
    assert script(tmp_path / "work", "kill", 1) == 20


def test_a_job_on_full_disks(tmp_path: Path) -> None:
    """A limit on the size of files simulates a full disk."""
    assert script(tmp_path / "work", "limit", 1) >= 6
