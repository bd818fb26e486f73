"""The measured tables of docs/performance.md: written from the stored results, a column for each machine."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from helpers.paths import ROOT


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    yield tables
    for name in ("tables", "results", "machine"):
        sys.modules.pop(name, None)


def store(tables: ModuleType, path: Path, cpu: str, speeds: dict[str, tuple[float, float]]) -> object:
    """Store decoding speeds, ours and llama.cpp's by our dtype, as those of a machine."""
    found = tables.Store(path)
    found.data["machine"] = {"cpu": cpu, "cores": 2, "instruction_sets": ["avx2"], "memory_gib": 8.0}
    for dtype, (ours, peer) in speeds.items():
        about = {"shape": "7b-8l", "threads": 2, "row": "decode", "ours": f"share4v:{dtype}", "peer": "llama.cpp:Q4_0"}
        figures = {"our_median": ours, "peer_median": peer, "ratio_min": 1.0, "ratio_max": 2.0}
        figures["roofline"] = {"limit": "memory", "peak": 4e10, "share": 0.95, "instruction_set": "avx2"}
        found.put("compare", about, figures)
    return found


def test_the_page_is_that_of_the_stored_results(tables: ModuleType) -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert tables.page(page) == page, "run python benchmarks/tables.py"


def test_machines_stand_side_by_side_and_are_never_mixed(tables: ModuleType, tmp_path: Path) -> None:
    machines = [
        store(tables, tmp_path / "a.json", "CPU A", {"int4": (20.0, 10.0), "int8": (12.0, 10.0)}),
        store(tables, tmp_path / "b.json", "CPU B", {"int4": (90.0, 30.0)}),
    ]
    lines = tables.tables(machines).splitlines()
    assert "|  | ours | peer | CPU A, 2 cores | CPU B, 2 cores |" in lines
    assert (
        "| decode | int4 | llama.cpp Q4_0 | 20 / 10 = **2.00** (1.00 to 2.00) | 90 / 30 = **3.00** (1.00 to 2.00) |"
        in lines
    )
    assert "| decode | int8 | llama.cpp Q4_0 | 12 / 10 = **1.20** (1.00 to 2.00) |  |" in lines
    assert "| decode | int4 | 95% of 40 GB/s read, avx2 | 95% of 40 GB/s read, avx2 |" in lines


def test_a_new_measurement_replaces_the_one_about_the_same(tables: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    store(tables, path, "CPU A", {"int4": (20.0, 10.0), "int8": (12.0, 10.0)})
    store(tables, path, "CPU A", {"int4": (25.0, 10.0)})
    stored = json.loads(path.read_text())["compare"]
    assert sorted((one["about"]["ours"], one["our_median"]) for one in stored) == [
        ("share4v:int4", 25.0),
        ("share4v:int8", 12.0),
    ]


def test_a_busy_machine_is_refused(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import machine

    used = iter([100.0, 101.0, 200.0, 201.0, 300.0, 300.0])  # CPU seconds of all programs, before and after two seconds
    monkeypatch.setattr(machine, "cpu_seconds", lambda: next(used))
    clock = itertools.count(0.0, 2.0)  # seconds; two between looks at it
    time = SimpleNamespace(sleep=lambda seconds: None, perf_counter=lambda: next(clock), process_time=lambda: 0.0)
    monkeypatch.setattr(machine, "time", time)
    with pytest.raises(machine.BusyMachineError, match="--allow-busy"):
        machine.require_idle()
    assert machine.require_idle(allow_busy=True) == 0.5
    assert machine.require_idle() == 0.0
