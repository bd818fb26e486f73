"""The weights of a model in memory as entries of a checkpoint, from which a model of another type is filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .formats import StoredTensor
from .loading import cast, fill_parameters
from .packed import Packed, fill, unpack

if TYPE_CHECKING:
    from mindspore import Parameter

    from ..configuration import TextConfig
    from ..kernels.blocks import BlockPlan

_NOWHERE = Path("memory")
_NO_FILE = np.empty(0, np.uint8)


def entries_in_memory(
    parameters: Mapping[str, Parameter], packed: Sequence[Packed], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredTensor]:
    """Return the weights of a model by their names, which are read when they are needed.

    Args:
        parameters: of the components that are cells.
        packed: the other components; their weights are not integers.
        shapes: the shape of every weight according to the config.
    """
    entries = {
        name: _entry(name, tuple(parameter.shape), partial(_array_of, parameter))
        for name, parameter in parameters.items()
    }
    for component in packed:
        blocks = _Blocks(component)
        for plan in component.plans:
            for piece in plan.pieces:
                read = partial(blocks.weight, plan, piece.weight)
                entries[piece.weight] = _entry(piece.weight, shapes[piece.weight], read)
        for name, shape in component.plain.items():
            entries[name] = _entry(name, shape, partial(component.array, name))
    return entries


def check_range(entries: Mapping[str, StoredTensor], dtype: str) -> None:
    """Check that every matrix fits a type.

    Raises:
        CheckpointError: a value is too large for it.
    """
    for name, entry in entries.items():
        if len(entry.shape) > 1:
            cast(entry.read(), dtype, name)


def fill_from(
    parameters: Mapping[str, Parameter],
    packed: Sequence[Packed],
    entries: Mapping[str, StoredTensor],
    config: TextConfig,
) -> None:
    """Fill a model that was built with another type from the weights of one; errors as in `load_weights`."""
    fill_parameters(parameters, entries)
    for component in packed:
        fill(component, entries, False, config)


class _Blocks:
    """Reads single weights of a component, of which it keeps the last unpacked block."""

    def __init__(self, component: Packed) -> None:
        self._component = component
        self._unpacked = lru_cache(maxsize=1)(self._unpack)
        self._plans: dict[str, BlockPlan] = {}

    def weight(self, plan: BlockPlan, name: str) -> np.ndarray:
        self._plans[plan.name] = plan
        return self._unpacked(plan.name)[name]

    def _unpack(self, name: str) -> dict[str, np.ndarray]:
        return dict(unpack(self._plans[name], self._component.array(name)))


def _entry(name: str, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> StoredTensor:
    return StoredTensor(name, shape, "float32", _NOWHERE, lambda: read().reshape(shape), _NO_FILE)


def _array_of(parameter: Parameter) -> np.ndarray:
    array: np.ndarray = parameter.float().asnumpy()
    return array
