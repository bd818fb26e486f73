"""Each test of this folder runs with every kind of kernels that this CPU can run. None of them needs MindSpore."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from mindone.models.share4v.kernels import cache_memory, packing
from mindone.models.share4v.kernels.library import LIBRARY, KernelError, Library, library

# Read when OpenMP is loaded: a thread that waits leaves its CPU to the one it waits for, also on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _kinds() -> list[str]:
    try:
        return library().instruction_sets()
    except KernelError:
        return ["missing"]  # each test says why


@pytest.fixture(scope="session")
def any_kernels() -> Library:
    """The library, whatever kind is selected. Without a compiler the package has none, and nothing can be tested."""
    if not LIBRARY.is_file() and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("the kernels were not built, since there is no C++ compiler")
    return library()


@pytest.fixture
def kernels(kind: str, any_kernels: Library) -> Iterator[Library]:
    """The library with one kind of kernels selected, and one thread: more only wait for a busy machine's CPUs."""
    before = any_kernels.instruction_set
    any_kernels.select(kind)
    any_kernels.threads = 1
    yield any_kernels
    any_kernels.select(before)
    any_kernels.threads = 0


@pytest.fixture(params=_kinds())
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of kernels that this CPU can run."""
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


@pytest.fixture(autouse=True)
def ends_are_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take blocks and caches from the heap, where the address sanitizer sees a step beyond their ends."""
    for module in (packing, cache_memory):
        monkeypatch.setattr(module, "anonymous_memory", lambda size, huge_pages=True: np.zeros(size, np.uint8))
