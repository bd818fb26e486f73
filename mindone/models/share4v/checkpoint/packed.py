"""Packed weights of the kernels: filled from a checkpoint, mapped from a file that has them packed, and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..bfloat16 import to_bfloat16
from ..configuration import TextConfig
from ..kernels.blocks import BlockPlan, Piece
from ..kernels.packing import LANES, BlockWriter, RoundedGroups, block_bytes, check_block, read_vector, unpack_matrix
from ..quantization import precision_of
from ..rounding.importance import Importance
from ..rounding.rotation import RotatedWeights, Rotation
from .atomic import OURS_SINGLE
from .errors import CheckpointError
from .formats import StoredTensor
from .formats.mapped_file import FileVersion, mapped_versions
from .safetensors_writer import aligned, ordered, write_aligned


class Packed(Protocol):
    """What kernels.component.KernelComponent offers."""

    plans: tuple[BlockPlan, ...]
    plain: dict[str, tuple[int, ...]]

    def put(self, name: str, array: np.ndarray) -> None: ...

    def array(self, name: str) -> np.ndarray: ...


def expected_of(
    component: Packed, shapes: Mapping[str, tuple[int, ...]], quantized: bool
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes that a checkpoint must have for a component.

    Args:
        shapes: the shape of every weight according to the config (weights.expected_shapes).
        quantized: whether the checkpoint contains packed blocks.
    """
    if quantized:
        blocks: dict[str, tuple[int, ...]] = {plan.stored_name: (block_bytes(plan.spec),) for plan in component.plans}
        return {**blocks, **component.plain}
    weights = {piece.weight: shapes[piece.weight] for plan in component.plans for piece in plan.pieces}
    return {**weights, **component.plain}


def packer(
    plans: Sequence[BlockPlan],
    config: TextConfig,
    read: Callable[[str], np.ndarray],
    kept: Callable[[str, str], RoundedGroups | None] | None = None,
) -> Callable[[BlockPlan], np.ndarray]:
    """Return a function that packs one block after the other, in the order of `plans`.

    Rotated plans get rotated weights, and unrotated int4 super-blocks scales that suit the inputs of their layer.

    Args:
        plans: the blocks of one component, or of a complete model.
        config: the language model, which is the only component of either kind.
        read: returns a weight of the checkpoint by its name.
        kept: as in `pack`.
    """
    if any(plan.spec.is_rotated for plan in plans):
        weights = RotatedWeights(_finite_vectors(read), config, Rotation.random(config.hidden_size))
        return lambda plan: pack(plan, weights.reader(plan))
    if any(matrix.dtype == "int4-256" for plan in plans for matrix in plan.spec.matrices):
        importance = Importance(config, read)
        return lambda plan: pack(plan, read, importance.of(plan))
    return lambda plan: pack(plan, read, kept=kept)


def fill(
    component: Packed, entries: Mapping[str, StoredTensor], quantized: bool, config: TextConfig
) -> frozenset[FileVersion]:
    """Set the weights of a component, whose `entries` were checked; return the files that they are mapped from.

    `config` is the language model's.

    Raises:
        CheckpointError: a block has another version, or a value does not fit its type.
    """
    read = reader_of(entries)
    mapped: list[np.ndarray] = []
    packed = packer(component.plans, config, read, groups_of(entries))
    for plan in component.plans:
        if not quantized:
            component.put(plan.name, packed(plan))
            continue
        block = entries[plan.stored_name].read()
        try:
            check_block(block, plan.spec, plan.stored_name)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        mapped.append(aligned(block))
        component.put(plan.name, mapped[-1])
    for name in component.plain:
        component.put(name, finite_vector(read(name), name))
    return mapped_versions(mapped)


def finite_reader(read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """Return a function that reads a weight as float32; it raises CheckpointError if a value is not finite."""
    return lambda name: finite_vector(read(name), name)


def _finite_vectors(read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """Return a function that reads as `finite_reader` does, but leaves the values of matrices to packing to check."""

    def checked(name: str) -> np.ndarray:
        weight = read(name)
        return finite_vector(weight, name) if weight.ndim == 1 else weight

    return checked


def reader_of(entries: Mapping[str, StoredTensor]) -> Callable[[str], np.ndarray]:
    """Return a function that reads a weight by its name; it releases the file pages of the previous weight."""
    last: list[StoredTensor] = []

    def read(name: str) -> np.ndarray:
        while last:
            last.pop().release()
        last.append(entries[name])
        return entries[name].read()

    return read


def groups_of(entries: Mapping[str, StoredTensor]) -> Callable[[str, str], RoundedGroups | None]:
    """Return a function that reads, by a weight's name and a matrix's type, the integers that the file has for it."""

    def groups(name: str, dtype: str) -> RoundedGroups | None:
        read = entries[name].groups.get(dtype)
        return None if read is None else read()

    return groups


def stored_weights(
    component: Packed, dtype: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors to save for a component: blocks if they hold integers, else each weight separately.

    `shapes` are those of the config, since a block stores a convolution's kernel as a matrix. A weight that is in two
    blocks, as with a tied output layer, is written once.
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
            if whole.ndim > 1 and dtype != "float32":
                whole = to_bfloat16(whole) if dtype == "bfloat16" else whole.astype(dtype)
            yield name, whole
    for name, shape in component.plain.items():
        yield name, component.array(name).reshape(shape)


def write_arrays(pairs: Sequence[tuple[str, np.ndarray]], directory: Path) -> None:
    """Write blocks and other weights that are in memory or mapped to one file."""
    sorted_pairs = list(ordered(pairs))
    sizes = [(name, array.shape, array.dtype.name) for name, array in sorted_pairs]
    write_aligned(sizes, (array for _, array in sorted_pairs), directory / OURS_SINGLE)


def write_packed(
    plans: Sequence[BlockPlan],
    entries: Mapping[str, StoredTensor],
    directory: Path,
    packed: Callable[[BlockPlan], np.ndarray],
    progress: Any = None,
) -> None:
    """Write a checkpoint's blocks one at a time, as `packed` makes them; weights in no plan are written as float32."""
    in_blocks = {piece.weight for plan in plans for piece in plan.pieces}
    rest = [name for name in sorted(entries) if name not in in_blocks]
    sizes: list[tuple[str, tuple[int, ...], str]] = [
        (plan.stored_name, (block_bytes(plan.spec),), "uint8") for plan in plans
    ]
    sizes += [(name, entries[name].shape, "float32") for name in rest]
    read = reader_of(entries)

    def arrays() -> Iterator[np.ndarray]:
        for plan in plans:
            yield packed(plan)
            if progress is not None:
                progress.update(len(plan.pieces))
        for name in rest:
            yield finite_vector(read(name), name)

    write_aligned(sizes, arrays(), directory / OURS_SINGLE)


def pack(
    plan: BlockPlan,
    read: Callable[[str], np.ndarray],
    importance: Mapping[int, np.ndarray] | None = None,
    kept: Callable[[str, str], RoundedGroups | None] | None = None,
) -> np.ndarray:
    """Fill a block from its weights and return it, uint8 [bytes]; `read` returns a weight by its name.

    `importance` has the mean square of each input of some matrices (BlockWriter.matrix), by the matrix's number. `kept`
    returns the integers that the checkpoint stores for a weight, given its name and the matrix's type, or None.

    Raises:
        CheckpointError: a value is not finite, or is too large for its type.
    """
    writer = BlockWriter(plan.spec)
    write_vectors(writer, plan, read)
    weighted = importance or {}
    for number, matrix in enumerate(plan.spec.matrices):
        parts = [p for p in plan.pieces if (p.kind, p.number, p.field) == ("matrices", number, "weight")]
        weights: Iterable[tuple[int, np.ndarray]]
        crosses = any(part.first % LANES for part in parts)
        if kept is not None and not crosses:
            parts = [part for part in parts if not _write_kept(writer, part, kept(part.weight, matrix.dtype))]
        if crosses:  # panels of 16 rows cross their borders; such layers are small
            weights = [(0, np.concatenate([_rows(read(part.weight), part) for part in parts]))]
        else:
            weights = ((part.first, _rows(read(part.weight), part)) for part in parts)
        for first, weight in weights:
            try:
                writer.matrix(number, weight, first, weighted.get(number))
            except OverflowError as error:
                names = ", ".join(part.weight for part in parts)
                raise CheckpointError(f"{names}: {error}; use dtype (--dtype) float32, or check the file") from error
            del weight  # before the next one is read
    return writer.block


def _write_kept(writer: BlockWriter, part: Piece, groups: RoundedGroups | None) -> bool:
    """Write rows whose integers the checkpoint stores; return whether it has them."""
    if groups is not None:
        writer.groups(part.number, groups, part.first)
    return groups is not None


def write_vectors(writer: BlockWriter, plan: BlockPlan, read: Callable[[str], np.ndarray]) -> None:
    """Write the norms and biases of a block, and its rotation.

    Raises:
        CheckpointError: a value is not finite.
    """
    if plan.spec.is_rotated:
        writer.rotation(Rotation.random(plan.spec.norms[0].size).table)
    for piece in plan.pieces:
        if piece.kind == "norms" or piece.field == "bias":
            values = finite_vector(read(piece.weight), piece.weight)
            writer.vector(piece.kind, piece.number, piece.field, values, piece.first)


def finite_vector(weight: np.ndarray, name: str) -> np.ndarray:
    """Return a weight of any shape as float32.

    Raises:
        CheckpointError: a value is not finite.
    """
    with np.errstate(over="ignore"):
        values = np.array(weight, np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{name}: values are not finite; the file is damaged, download it again")
    return values


def _rows(weight: np.ndarray, piece: Piece) -> np.ndarray:
    kept = weight if weight.dtype in (np.float32, np.float16) else weight.astype(np.float32)
    return kept.reshape(piece.size, -1)  # a convolution's kernel [D, C, P, P] becomes a matrix


def unpack(plan: BlockPlan, block: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, float32 array) of each weight in a block; matrices are [rows, columns]."""
    for number in range(len(plan.spec.matrices)):
        matrix = unpack_matrix(block, plan.spec, number)
        for piece in plan.pieces:
            if (piece.kind, piece.number, piece.field) == ("matrices", number, "weight"):
                yield piece.weight, matrix[piece.first : piece.first + piece.size]
    for piece in plan.pieces:
        if piece.kind == "norms" or piece.field == "bias":
            vector = read_vector(block, piece.kind, piece.number, piece.field, piece.first + piece.size)
            yield piece.weight, vector[piece.first :]
