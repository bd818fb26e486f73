"""Weights of components on the kernels: packed as they are read, mapped where a file has them packed, written back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..kernels.packing import block_bytes, check_block
from ..quantization import precision_of
from .atomic import OURS_SINGLE
from .blocks import BlockPlan, finite_vector, pack, unpack
from .errors import CheckpointError
from .formats import StoredTensor
from .safetensors_writer import aligned, ordered, write_aligned


class Packed(Protocol):
    """What packed_component.PackedComponent offers."""

    plans: tuple[BlockPlan, ...]
    plain: dict[str, tuple[int, ...]]

    def put(self, name: str, array: np.ndarray) -> None: ...

    def array(self, name: str) -> np.ndarray: ...


def expected_of(
    component: Packed, shapes: Mapping[str, tuple[int, ...]], quantized: bool
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes that a checkpoint must have for a component.

    Args:
        shapes: every weight's shape by the config (shapes.expected_shapes).
        quantized: whether the checkpoint holds packed blocks.
    """
    if quantized:
        blocks: dict[str, tuple[int, ...]] = {plan.stored_name: (block_bytes(plan.spec),) for plan in component.plans}
        return {**blocks, **component.plain}
    weights = {piece.weight: shapes[piece.weight] for plan in component.plans for piece in plan.pieces}
    return {**weights, **component.plain}


def fill(component: Packed, entries: Mapping[str, StoredTensor], quantized: bool) -> None:
    """Give a component its weights; entries were checked already.

    Raises:
        CheckpointError: a block is of another version, or a value does not fit its type.
    """
    read = one_by_one(entries)
    for plan in component.plans:
        if not quantized:
            component.put(plan.name, pack(plan, read))
            continue
        block = entries[plan.stored_name].read()
        try:
            check_block(block, plan.spec, plan.stored_name)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        component.put(plan.name, aligned(block))
    for name in component.plain:
        component.put(name, finite_vector(read(name), name))


def one_by_one(entries: Mapping[str, StoredTensor]) -> Callable[[str], np.ndarray]:
    """Return what reads a weight by its name; of the files' pages only those of the last weight stay in memory."""
    last: list[StoredTensor] = []

    def read(name: str) -> np.ndarray:
        while last:
            last.pop().release()
        last.append(entries[name])
        return entries[name].read()

    return read


def stored_form(
    component: Packed, dtype: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what of a component is written to a file: blocks where they hold integers, else every weight by itself.

    `shapes` are those of the weights by the config: a block has a convolution's kernel as a matrix. A weight that two
    blocks hold, as a tied output layer does, is written once.
    """
    written = set()
    for plan in component.plans:
        block = component.array(plan.name)
        if precision_of(dtype).is_quantized:
            yield plan.stored_name, block
            continue
        for name, weight in unpack(plan, block):
            if name in written:
                continue
            written.add(name)
            whole = weight.reshape(shapes[name])
            yield name, whole if dtype == "float32" or whole.ndim == 1 else whole.astype(dtype)
    for name, shape in component.plain.items():
        yield name, component.array(name).reshape(shape)


def write_held(pairs: Sequence[tuple[str, np.ndarray]], directory: Path) -> None:
    """Write blocks and other weights that are in memory already, or mapped, as one file."""
    sorted_pairs = list(ordered(pairs))
    sizes = [(name, array.shape, array.dtype.name) for name, array in sorted_pairs]
    write_aligned(sizes, (array for _, array in sorted_pairs), directory / OURS_SINGLE)


def write_packed(
    plans: Sequence[BlockPlan], entries: Mapping[str, StoredTensor], directory: Path, progress: Any = None
) -> None:
    """Pack a checkpoint's weights and write them, one block at a time; what no plan names is written as it is."""
    packed = {piece.weight for plan in plans for piece in plan.pieces}
    rest = [name for name in sorted(entries) if name not in packed]
    sizes: list[tuple[str, tuple[int, ...], str]] = [
        (plan.stored_name, (block_bytes(plan.spec),), "uint8") for plan in plans
    ]
    sizes += [(name, entries[name].shape, "float32") for name in rest]
    read = one_by_one(entries)

    def arrays() -> Iterator[np.ndarray]:
        for plan in plans:
            yield pack(plan, read)
            if progress is not None:
                progress.update(len(plan.pieces))
        for name in rest:
            yield finite_vector(read(name), name)

    write_aligned(sizes, arrays(), directory / OURS_SINGLE)
