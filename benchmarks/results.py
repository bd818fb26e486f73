"""Stored results: one JSON file for each kind of machine, which tables.py turns into docs/performance.md."""

from __future__ import annotations

import json
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import machine

FOLDER = Path(__file__).with_name("results")
ROOT = Path(__file__).parents[1]


def commit() -> str:
    """Return the short name of the repository's commit, with a "+" if files differ from it; "" outside a clone."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


class Store:
    """The results of one kind of machine.

    Attributes:
        data: "machine" describes it; each other section is a list of entries, each with what was measured, its figures,
            and when.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @classmethod
    def of_this_machine(cls) -> Store:
        """Return the store of this machine, which need not exist yet."""
        described = machine.describe()
        store = cls(FOLDER / f"{machine.slug(described)}.json")
        kept = ("cpu", "microarchitecture", "cores", "instruction_sets", "memory_gib", "system", "python")
        store.data["machine"] = {name: described[name] for name in kept}
        return store

    def put(self, section: str, about: dict[str, Any], figures: dict[str, Any]) -> None:
        """Store figures in place of earlier ones about the same, and write the file."""
        entries = self.data.setdefault(section, [])
        entries[:] = [one for one in entries if one["about"] != about]
        entries.append({"about": about, "date": date.today().isoformat(), "commit": commit(), **figures})
        self._write()

    def add_rounds(self, section: str, about: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
        """Add rounds to those about the same of the same commit; those of another commit are replaced."""
        old = [one for one in self.data.get(section, []) if one["about"] == about and one["commit"] == commit()]
        self.put(section, about, {"rounds": [*(old[0]["rounds"] if old else []), *rounds]})

    def _write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")


def stores() -> list[Store]:
    """Return the stores of all machines, by name."""
    return [Store(path) for path in sorted(FOLDER.glob("*.json"))]
