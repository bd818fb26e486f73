"""The examples in docstrings run and print what they say, in a folder with the pictures that they speak of."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from helpers.pages.document import ROOT
from helpers.pages.stand_in import draw_pictures

import mindone.models.share4v
import mindone.pipelines
import mindone_share4v

PACKAGES = (mindone.models.share4v, mindone.pipelines, mindone_share4v)
FLAGS = doctest.ELLIPSIS  # `...` stands for anything


def _is_python(module: pkgutil.ModuleInfo) -> bool:
    """The library of kernels lies among the modules and is none; `__main__` runs the command."""
    spec = module.module_finder.find_spec(module.name, None)
    return spec is not None and str(spec.origin).endswith(".py") and not module.name.endswith("__main__")


def modules() -> list[str]:
    return [
        name
        for package in PACKAGES
        for name in (
            package.__name__,
            *(
                module.name
                for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
                if _is_python(module)
            ),
        )
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("doctests")
    draw_pictures(ROOT / "examples" / "sharegpt_4v" / "scene.png", place)
    return place


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    result = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert result.failed == 0


def public_names() -> list[tuple[str, str]]:
    """Classes and functions that a package names in `__all__`."""
    return [
        (package.__name__, name)
        for package in (mindone.models.share4v, mindone.pipelines)
        for name in package.__all__
        if inspect.isclass(getattr(package, name)) or inspect.isfunction(getattr(package, name))
    ]


@pytest.mark.parametrize(("module", "name"), public_names())
def test_every_public_name_has_an_example_that_is_run(module: str, name: str) -> None:
    found = doctest.DocTestFinder().find(getattr(importlib.import_module(module), name), name)
    examples = [example for test in found for example in test.examples]
    assert any(example.want and doctest.SKIP not in example.options for example in examples)
