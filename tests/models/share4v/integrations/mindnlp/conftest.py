"""Tests that need the extra `mindnlp`. Without it nothing is collected, which pytest reports as a failure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.warm_processes import warm_children

collect_ignore_glob = [] if find_spec("mindnlp") else ["test_*.py"]


@pytest.fixture(scope="session")
def warm_workers() -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager: processes of language models that start in it have imported what they need.

    The worker asks for mindnlp as always, and finds it imported. That alone takes 11 s of CPU time a process.
    """
    return partial(warm_children, "mindnlp", "transformers.models.llama.modeling_llama")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[object, Path]]:
    """Return a function from one of SHAPES, or "small", to transformers' model and its path in the original format."""
    import torch
    from helpers.llava import SHAPES, SMALL, Reference
    from helpers.published_formats import write_original

    torch.set_num_threads(1)
    made: dict[str, tuple[object, Path]] = {}

    def make(name: str) -> tuple[object, Path]:
        if name not in made:
            reference = Reference(SMALL if name == "small" else SHAPES[name])
            made[name] = reference, write_original(reference, tmp_path_factory.mktemp(name))
        return made[name]

    return make
