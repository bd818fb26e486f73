"""Memory does not grow with the number of inputs, and nothing here imports MindSpore."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.jobs import png, write_tar
from helpers.paths import ROOT, TESTS

from mindone.pipelines.image_to_text.dataset.readers import archives, json_rows, list_inputs, text_encoding
from mindone.pipelines.image_to_text.dataset.state import atomic_files
from mindone.pipelines.image_to_text.dataset.state.journal import Journal
from mindone.pipelines.image_to_text.dataset.state.listing import Listing, write_listing
from mindone.pipelines.image_to_text.dataset.state.records import Record
from mindone.pipelines.image_to_text.dataset.writers import WRITERS, WriterOptions, open_writer, sidecars

FEW, MANY = 600, 2400
GROWTH = 30_000 + 40 * (MANY - FEW)  # bytes; less than storing anything per input would take


def rows(count: int) -> Iterator[dict[str, str]]:
    return ({"image": f"part{number % 50}/{number:07d}.png", "text": "x" * 50} for number in range(count))


def folder(path: Path, count: int) -> None:
    for number in range(count):
        place = path / f"part{number // 100:05d}" / f"{number:07d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


KINDS: dict[str, Callable[[Path, int], None]] = {
    "folder": folder,
    "t.txt": lambda path, count: void(path.write_text("".join(f"{row['image']}\n" for row in rows(count)))),
    "t.json": lambda path, count: void(path.write_text(json.dumps(list(rows(count)), indent=1))),
    "t.jsonl": lambda path, count: void(path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))),
    "t.csv": lambda path, count: void(
        path.write_text("image,text\n" + "".join(f"{row['image']},{row['text']}\n" for row in rows(count)))
    ),
    "t.parquet": lambda path, count: pq.write_table(pa.Table.from_pylist(list(rows(count))), path, row_group_size=500),
    "s.tar": lambda path, count: write_tar(path, ((f"{number:07d}.png", b"x") for number in range(count))),
    "s.tar.gz": lambda path, count: write_tar(path, ((f"{number:07d}.png", b"x") for number in range(count)), "w:gz"),
}


def void(value: object) -> None:
    """Ignore the value."""


def peak(work: Callable[[], object]) -> int:
    """Return the peak of Python's memory during `work`, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink buffers below the size of the smaller input; otherwise both inputs would need the same memory."""
    for module in (atomic_files, text_encoding, archives):
        monkeypatch.setattr(module, "_CHUNK", 4096)
    monkeypatch.setattr(json_rows, "CHUNK", 4096)
    monkeypatch.setattr(atomic_files, "GROUP_BYTES", 2**14)
    monkeypatch.setattr(archives, "WINDOW_BYTES", 2**14)
    monkeypatch.setattr(sidecars, "_GROUP", 32)


@pytest.mark.parametrize("name", KINDS)
def test_memory_of_listing(tmp_path: Path, name: str) -> None:
    peaks = []
    for count in (FEW, MANY):
        place = tmp_path / str(count) / name
        place.parent.mkdir()
        KINDS[name](place, count)
        found = []

        def work(place: Path = place, found: list[int] = found) -> None:
            found.append(sum(1 for _ in list_inputs([str(place)])))

        peaks.append(peak(work))
        assert found == [count]
    assert peaks[1] - peaks[0] < GROWTH, peaks


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("caption", "json", "open-sora-plan-json")])
def test_memory_of_writing(tmp_path: Path, name: str) -> None:
    """Parts have a fixed size, and missing records are streamed from the journal."""
    picture = tmp_path / "1.png"
    picture.write_bytes(png(1))
    counts, peaks = [count // (1 if name in ("jsonl", "parquet") else 4) for count in (FEW, MANY)], []
    for count in counts:
        state = tmp_path / str(count)
        (tmp_path / "list.txt").write_text("1.png\n" * count)
        write_listing(state / "inputs.jsonl", list_inputs([str(tmp_path / "list.txt")]))
        with Journal(state / "journal.jsonl") as journal:
            for item in Listing(state / "inputs.jsonl").items():
                journal.append(Record(item.number, item.key, item.source, ("A cat.",), width=6, height=4))
        writer = open_writer(name, str(state / "out"), WriterOptions(shard_size=50), state)
        peaks.append(peak(writer.finish))
    assert peaks[1] - peaks[0] < 40 * (counts[1] - counts[0]) + 50_000, peaks


@pytest.mark.parametrize("suffixes", [(".png",), (".png", ".txt")])
def test_memory_of_a_flat_folder(tmp_path: Path, suffixes: tuple[str, ...]) -> None:
    """The names in one directory are kept in memory for sorting, including those of captions beside images."""
    peaks = []
    for count in (3 * FEW, 3 * MANY):
        place = tmp_path / str(count)
        place.mkdir()
        for number in range(count):
            for suffix in suffixes:
                (place / f"{number:07d}{suffix}").touch()
        peaks.append(peak(lambda place=place: [None for _ in list_inputs([str(place)])].clear()))
    assert (peaks[1] - peaks[0]) / (3 * (MANY - FEW)) < 130 * len(suffixes), peaks


# getrusage of a child starts from its parent's peak, which would hide what the child adds.
RESIDENT = """
import sys
from pathlib import Path
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
"""

SCRIPT = """
from helpers.crashing import without_upstream
without_upstream(sys.argv[1])
from mindone.pipelines.image_to_text.dataset.readers import list_inputs
for item in list_inputs([sys.argv[2]]):
    if item.number in (100_000, 199_999):
        print(resident())
print(*sys.modules)
"""


def test_memory_of_two_hundred_thousand_inputs(tmp_path: Path) -> None:
    """Resident memory, which includes that of SQLite and other C code."""
    (tmp_path / "list.txt").write_text("".join(f"http://example.org/{number:07d}.png\n" for number in range(200_000)))
    root = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + SCRIPT, root, str(tmp_path / "list.txt")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert done.returncode == 0, done.stderr
    half, total, modules = done.stdout.splitlines()
    assert int(total) - int(half) < 5_000_000
    assert not {"mindspore", "transformers", "torch", "datasets", "pandas", "pyarrow", "PIL"} & set(modules.split())


SEEN = """
from helpers.crashing import without_upstream
without_upstream(sys.argv[1])
from mindone.pipelines.image_to_text.dataset.inference.caption_cache import CaptionCache
from mindone.pipelines.image_to_text.dataset.rules.retries import Caption
seen = CaptionCache(None)
for number in range(24_000):
    seen.put((number.to_bytes(32, "big"), "Describe this image"), Caption("x" * 900, 200, "eos"))
    if number in (7_999, 23_999):
        print(resident())
assert seen.get((bytes(32), "Describe this image")) == Caption("x" * 900, 200, "eos")
"""


def test_memory_of_a_caption_cache_without_a_file() -> None:
    """As in Ray's actors. The 16,000 captions between the two measurements have 14 MB."""
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + SEEN, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert done.returncode == 0, done.stderr
    before, after = (int(line) for line in done.stdout.split())
    assert after - before < 3_000_000
