"""Plans of packed blocks: which weights fill which matrix, bias and norm of a block.

The `weights.py` of each component describes its blocks with these types; `checkpoint.packed` fills and unpacks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .packing import BlockSpec

STORED_SUFFIX = ".packed"
# The shape of each weight, by the weight's name.
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Piece:
    """The destination of one weight inside a block.

    Attributes:
        weight: the weight's name.
        kind: "matrices" or "norms".
        number: index of the matrix or norm in the block's spec.
        field: "weight" or "bias".
        size: number of rows of the matrix, or number of values of the vector.
        first: row (or index in the vector) at which the weight begins.
    """

    weight: str
    kind: str
    number: int
    field: str
    size: int
    first: int = 0


@dataclass(frozen=True)
class BlockPlan:
    """A block and the weights that fill it.

    Attributes:
        name: the block's name, a prefix of the names of its weights.
        spec: the block's memory layout.
        pieces: where each weight goes.
    """

    name: str
    spec: BlockSpec
    pieces: tuple[Piece, ...]

    @property
    def stored_name(self) -> str:
        """The name of the block's tensor in a checkpoint."""
        return self.name + STORED_SUFFIX


def linear_pieces(number: int, bias: bool, *parts: tuple[str, int]) -> Iterator[Piece]:
    """Yield the pieces of matrix `number`, which stacks the weights of the linear layers `parts` (name, rows)."""
    first = 0
    for name, rows in parts:
        yield Piece(f"{name}.weight", "matrices", number, "weight", rows, first)
        if bias:
            yield Piece(f"{name}.bias", "matrices", number, "bias", rows, first)
        first += rows


def norm_pieces(number: int, name: str, size: int, bias: bool) -> Iterator[Piece]:
    """Yield the pieces of norm `number`, whose weights are those of the norm layer `name`."""
    yield Piece(f"{name}.weight", "norms", number, "weight", size)
    if bias:
        yield Piece(f"{name}.bias", "norms", number, "bias", size)


def linear_shapes(name: str, inputs: int, outputs: int, bias: bool) -> Shapes:
    """Return the names and shapes of a linear layer's weights."""
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def norm_shapes(name: str, size: int) -> Shapes:
    """Return the names and shapes of a layer norm's weights."""
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
