"""Base class of the components that run on the CPU kernels; their weights are packed blocks, not MindSpore Parameters.

MindSpore copies a Parameter when it is created and again when a graph is compiled. Blocks are never copied: the kernels
read them from memory or from a mapped file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from .blocks import BlockPlan

# Batch sizes in which images are encoded. Batches pay off for small towers.
IMAGE_BATCH_SIZES = (8, 1)


class WeightHolder(ABC):
    """A component that stores its own weights, so that none of them is a MindSpore Parameter.

    Attributes:
        plans: the component's packed blocks, and which weights fill them.
        plain: the names and shapes of its other weights, float32 arrays.
    """

    def __init__(self, plans: tuple[BlockPlan, ...], plain: Mapping[str, tuple[int, ...]]) -> None:
        self.plans = plans
        self.plain = dict(plain)

    @abstractmethod
    def put(self, name: str, array: np.ndarray) -> None:
        """Store a block (uint8) or a plain weight (float32)."""

    @abstractmethod
    def array(self, name: str) -> np.ndarray:
        """Return the block or weight of this name.

        Raises:
            RuntimeError: the weights were not loaded.
        """


class KernelComponent(WeightHolder):
    """A component on the kernels, with its blocks in this process's memory.

    Attributes:
        names: the blocks' names, in the order of `plans`.
    """

    def __init__(self, plans: tuple[BlockPlan, ...], plain: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(plans, plain)
        self.names = tuple([plan.name for plan in plans])
        self._arrays: dict[str, np.ndarray] = {}

    def put(self, name: str, array: np.ndarray) -> None:
        """Store a block (uint8) or a plain weight (float32) without copying it."""
        self._arrays[name] = array

    def array(self, name: str) -> np.ndarray:
        """Return the block or weight of this name.

        Raises:
            RuntimeError: the weights were not loaded.
        """
        if name not in self._arrays:
            raise RuntimeError(f"the weights of {name} were not loaded: create the model with Share4V.from_pretrained")
        return self._arrays[name]

    def arrays(self, *names: str) -> list[np.ndarray]:
        """Return the blocks or weights of these names; errors are those of `array`."""
        return [self.array(name) for name in names]


def runs_on_kernels(component: Any) -> bool:
    """Return whether a component, or a component class, runs on the kernels."""
    return isinstance(component, KernelComponent) or (
        isinstance(component, type) and issubclass(component, KernelComponent)
    )


def weight_holders(*components: Any) -> list[WeightHolder]:
    """Return the components that store their own weights; the weights of the others are Parameters."""
    return [component for component in components if isinstance(component, WeightHolder)]
