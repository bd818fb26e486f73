"""Pairs of models that training may change."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from helpers.llava import Reference
from helpers.training import Pair
from mindspore import Tensor


@pytest.fixture(params=["odd-grouped-gelu"])
def pair(request: pytest.FixtureRequest, pair_of: Callable[..., Pair]) -> Iterator[Pair]:
    """Two equal models, which training changes: a new reference, and ours with its old weights put back."""
    reference, model = pair_of(request.param, "cells")
    before = {name: value.asnumpy().copy() for name, value in model.parameters_and_names()}
    yield Reference(reference.shape), model
    for name, value in model.parameters_and_names():
        value.set_data(Tensor(before[name]))
    model.reset_caches()


@pytest.fixture
def usual(pair_of: Callable[..., Pair]) -> Pair:
    """Cells: the kernels are for inference alone."""
    return pair_of("usual", "cells")


@pytest.fixture
def small(small_cells: Pair) -> Pair:
    return small_cells
