"""Tests of the kernels run with every kind of kernels that this CPU supports, and without MindSpore."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from mindone.models.share4v.kernels import cache_memory, packing
from mindone.models.share4v.kernels.library import LIBRARY, KernelError, Library, library

# OpenMP reads this when it is loaded. Threads that wait sleep instead of spinning, which leaves the CPU to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _kinds() -> list[str]:
    try:
        return library().instruction_sets()
    except KernelError:
        return ["missing"]  # every test is skipped or fails with the reason


@pytest.fixture(scope="session")
def any_kernels() -> Library:
    """The library with the kind that it selects itself. Without a compiler it is not built; the tests are skipped."""
    if not LIBRARY.is_file() and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("the kernels were not built because no C++ compiler was found")
    return library()


@pytest.fixture
def kernels(kind: str, any_kernels: Library) -> Iterator[Library]:
    """The library with one kind of kernels selected and one thread."""
    before = any_kernels.instruction_set
    any_kernels.select(kind)
    any_kernels.threads = 1
    yield any_kernels
    any_kernels.select(before)
    any_kernels.threads = 0


@pytest.fixture(params=_kinds())
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of kernels that this CPU supports."""
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


@pytest.fixture(autouse=True)
def heap_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocate blocks and caches on the heap, where the address sanitizer detects accesses out of bounds."""
    for module in (packing, cache_memory):
        monkeypatch.setattr(module, "anonymous_memory", lambda size, huge_pages=True: np.zeros(size, np.uint8))
