"""Jobs while the clock jumps, permissions are taken away, or the output becomes read-only."""

from __future__ import annotations

import ast
import errno
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import png, run, tree
from helpers.paths import ROOT

from mindone.pipelines.image_to_text.dataset.writers import WriterOptions

OUTPUTS = [("txt", "out"), ("jsonl", "out/a.jsonl"), ("parquet", "out/a.parquet"), ("webdataset", "out")]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
WALL_CLOCK = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(png(number) if number != 3 else b"")
    return folder


def job(place: Path, photos: Path, name: str, out: str) -> dict[str, bytes]:
    run(place / "state", [photos], [(name, place / out)], WriterOptions(shard_size=3), group=3)
    return tree(place / "out")


def test_no_code_depends_on_the_time_of_day() -> None:
    """Durations and deadlines come from `time.monotonic` and `perf_counter`, which do not jump."""
    found = []
    for path in itertools.chain((ROOT / "mindone").rglob("*.py"), (ROOT / "mindone_share4v").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if is_attribute and (node.value.id, node.attr) in WALL_CLOCK:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    # The report's axis, what the server tells clients and writes into its log, and the pauses that other servers ask
    # for with a date, which have a limit.
    shown = [
        "dataset/state/speed_log",
        "retry_after",
        "serve/middleware",
        "serve/ollama_api",
        "serve/openai_responses",
        "serve/service",
    ]
    assert sorted({one.rpartition(":")[0] for one in found}) == [
        f"mindone/pipelines/image_to_text/{name}.py" for name in shown
    ]


@pytest.mark.parametrize(("name", "out"), OUTPUTS)
def test_a_clock_that_jumps(tmp_path: Path, photos: Path, name: str, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = job(tmp_path / "whole", photos, name, out)
    jumps = itertools.cycle([0.0, 4e9, -1.0, 1e9, 1e9 - 86400])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(jumps) * 1e9))
    assert job(tmp_path / "jumping", photos, name, out) == whole
    assert job(tmp_path / "jumping", photos, name, out) == whole


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize(("name", "out"), OUTPUTS)
def test_an_output_that_becomes_read_only(
    tmp_path: Path, photos: Path, name: str, out: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any step on, nothing can be created or renamed; later the same job ends as if undisturbed."""
    whole = job(tmp_path / "whole", photos, name, out)
    steps, limit = 0, 10**9
    real_open = os.open

    def refuse(what: object) -> None:
        nonlocal steps
        steps += 1
        if steps >= limit:
            raise OSError(number, os.strerror(number), str(what))

    def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & WRITING:
            refuse(path)
        return real_open(path, flags, *arguments, **options)

    def refusing(step: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*arguments: Any, **options: Any) -> Any:
            refuse(arguments[0])
            return step(*arguments, **options)

        return taken

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "replace", refusing(os.replace))
    monkeypatch.setattr(Path, "replace", refusing(Path.replace))
    job(tmp_path / "counted", photos, name, out)
    total = steps
    assert total > 8
    for step in range(1, total + 1, 2):
        place, steps, limit = tmp_path / str(step), 0, step
        with pytest.raises(OSError) as raised:
            job(place, photos, name, out)
        assert raised.value.errno == number, step
        limit = 10**9
        assert job(place, photos, name, out) == whole, step
