"""Mistakes put into the package's sources, to prove that a test would notice them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = "mindone.models.share4v"


@dataclass(frozen=True)
class Change:
    """One wrong line.

    Attributes:
        file: within the package.
        old, new: `old` occurs once in the file and is replaced by `new`.
    """

    file: str
    old: str
    new: str

    def text(self, source: Path) -> str:
        """Return the file of the package at `source` with the change.

        Raises:
            ValueError: `old` does not occur once.
        """
        text = (source / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {text.count(self.old)} times {self.old!r}, expected once")
        return text.replace(self.old, self.new)


def package_directory() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def changed_copy(change: Change, directory: Path) -> Path:
    """Make links to the package's Python files and their bytecode in `directory`, and a copy of one with the change."""
    source = package_directory()

    def ignored(at: str, names: list[str]) -> list[str]:
        skipped = {"assets", "csrc"}
        files = (name for name in names if Path(at, name).is_file() and not name.endswith((".py", ".pyc")))
        return [*skipped.intersection(names), *files]

    shutil.copytree(source, directory, ignore=ignored, copy_function=os.symlink)
    file = directory / change.file
    file.unlink()
    file.write_text(change.text(source), encoding="utf-8")
    return directory


def import_from(directory: Path) -> None:
    """Import the package from `directory` from now on, whatever was imported before."""
    for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
        del sys.modules[name]
    _load(PACKAGE, directory / "__init__.py", [str(directory)])


def put_into_this_process(change: Change, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, replace the classes and functions of one module by those of a changed copy in `directory`.

    They are replaced in every module of the package and of the tests' helpers that has imported them.
    """
    module = sys.modules[f"{PACKAGE}.{change.file.removesuffix('.py').replace('/', '.')}"]
    path = directory / Path(change.file).name  # MindSpore reads the sources of what it compiles
    path.write_text(change.text(package_directory()), encoding="utf-8")
    changed = _load(f"{module.__name__}_changed", path)
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        for user in list(sys.modules.values()):
            if user.__name__.startswith((PACKAGE, "helpers.")) and vars(user).get(name) is value:
                monkeypatch.setattr(user, name, getattr(changed, name))


def _load(name: str, path: Path, search: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=search)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
