"""A part of a model whose weights are packed blocks, not Parameters: what all that runs on the kernels is made of.

A Parameter is copied when it is made and again when a graph holds it. Blocks are inputs of the graph: they are used
where they lie, in memory or in a mapped file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import Tensor

from .blocks import BlockPlan

# Images that go through tower and projector in one run, each number a graph of its own. A row has the same bits
# whatever stands beside it, and a small tower spends more time between two runs than in one.
IMAGES_TOGETHER = (8, 1)


class WeightHolder(ABC):
    """A part of a model that keeps its weights itself, so that none of them is a Parameter.

    Attributes:
        plans: every block the component needs, and how it is filled.
        plain: shapes of the weights it needs besides, float32 arrays, by name.
    """

    def __init__(self, plans: tuple[BlockPlan, ...], plain: Mapping[str, tuple[int, ...]]) -> None:
        self.plans = plans
        self.plain = dict(plain)

    @abstractmethod
    def put(self, name: str, array: np.ndarray) -> None:
        """Take a block (uint8) or a plain weight (float32)."""

    @abstractmethod
    def array(self, name: str) -> np.ndarray:
        """Return what was put under a name.

        Raises:
            RuntimeError: the weights were not loaded.
        """


class PackedComponent(WeightHolder):
    """Holds blocks by name, in this process's memory.

    Attributes:
        names: the blocks' names, in the order of `plans`.
    """

    def __init__(self, plans: tuple[BlockPlan, ...], plain: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(plans, plain)
        self.names = tuple([plan.name for plan in plans])
        self._held: dict[str, Tensor] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def put(self, name: str, array: np.ndarray) -> None:
        """Take a block (uint8) or a plain weight (float32); the memory is shared, not copied."""
        self._arrays[name] = array  # MindSpore's tensor does not keep it alive in every version
        self._held[name] = Tensor.from_numpy(array)

    def array(self, name: str) -> np.ndarray:
        """Return what was put under a name.

        Raises:
            RuntimeError: the weights were not loaded.
        """
        if name not in self._arrays:
            raise RuntimeError(f"the weights of {name} were not loaded: make the model with Share4V.from_pretrained")
        return self._arrays[name]

    def held(self, *names: str) -> tuple[Tensor, ...]:
        """Return what was put under each name, as graphs take it."""
        for name in names:
            self.array(name)
        return tuple([self._held[name] for name in names])


def is_packed(component: Any) -> bool:
    """Return whether a component, or a component class, runs on the kernels."""
    return isinstance(component, PackedComponent) or (
        isinstance(component, type) and issubclass(component, PackedComponent)
    )


def weight_holders(*components: Any) -> list[WeightHolder]:
    """Return the components that store their own weights; the weights of the others are Parameters."""
    return [component for component in components if isinstance(component, WeightHolder)]
