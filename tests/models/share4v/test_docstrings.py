"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import mindone.models.share4v
import mindone.pipelines


def _is_python(module: pkgutil.ModuleInfo) -> bool:
    """The library of kernels lies among the modules and is none."""
    spec = module.module_finder.find_spec(module.name, None)
    return spec is not None and str(spec.origin).endswith(".py")


def modules() -> list[str]:
    return [
        module.name
        for package in (mindone.models.share4v, mindone.pipelines)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if _is_python(module)
    ]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
