"""Pairs of models that training may change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers.llava import Reference
from helpers.training import Pair, copy_of


@pytest.fixture(params=["odd-grouped-gelu"])
def pair(request: pytest.FixtureRequest, pair_of: Callable[..., Pair]) -> Pair:
    """Two equal models, which training changes, so not those that all tests share, nor the graphs of those."""
    reference, model = pair_of(request.param, "cells")
    return Reference(reference.shape), copy_of(model)


@pytest.fixture
def usual(pair_of: Callable[..., Pair]) -> Pair:
    """Cells: the kernels are for inference alone."""
    return pair_of("usual", "cells")


@pytest.fixture
def small(small_cells: Pair) -> Pair:
    return small_cells
