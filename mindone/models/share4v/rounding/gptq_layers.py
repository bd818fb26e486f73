"""Rounds the layers of a language model with GPTQ, one after the other, on sequences that run through all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..configuration import TextConfig
from ..kernels.blocks import BlockPlan
from ..kernels.library import library
from ..kernels.packing import LANES, BlockSpec, BlockWriter
from .gptq import gptq
from .moments import Moments
from .reference import ReferenceLayer
from .rotation import Reader, Rotation


class Sequences(Protocol):
    """A list of sequences, float32 [T, H] each, in memory or in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...

    def __setitem__(self, index: int, value: np.ndarray, /) -> None: ...


class LayerRounder:
    """Packs one layer's block at a time. Each matrix sees what the rounded matrices before it compute.

    Args:
        config: the language model.
        read: returns a weight of a layer by its name.
        rotation: of the residual stream, if the weights are rotated; else None.
    """

    def __init__(self, config: TextConfig, read: Reader, rotation: Rotation | None) -> None:
        self.config, self.read, self.rotation = config, read, rotation

    def block(self, plan: BlockPlan, writer: BlockWriter, sequences: Sequences) -> np.ndarray:
        """Round a layer's matrices into `writer`, whose vectors are written, and return its block.

        The sequences, the layer's inputs, become its outputs, one at a time.
        """
        if self.rotation and plan.spec.is_rotated:
            for index in range(len(sequences)):
                sequences[index] = self.rotation.rows(sequences[index])
        layer = ReferenceLayer(self.config, plan.name, self.read, plan.spec.matrices[3].hadamard)
        exact, run = _ExactMatrices(plan, self.read), _LayerRun(layer, _RoundedMatrices(), sequences)
        first_value = (self.config.num_attention_heads + self.config.kv_heads) * self.config.head_size
        for number, inputs in enumerate((run.to_attention, run.to_output, run.to_mlp, run.to_down)):
            columns = plan.spec.matrices[number].columns
            moments, weight = _moments(columns, inputs()), exact.weight(number)
            # The values come after the queries and keys, if no panel of the block has rows of both.
            rows = first_value if number == 0 and first_value % LANES == 0 else len(weight)
            writer.codes(number, gptq(weight[:rows], moments))
            run.rounded.add(number, writer, exact.bias(number))
            if rows < len(weight):  # the values are zeros so far
                writer.codes(number, gptq(weight[rows:], _moments(columns, run.to_values())), rows)
                run.rounded.add(number, writer, exact.bias(number))
            del moments, weight
        run.finish()
        return writer.block


def _moments(columns: int, inputs: Iterable[np.ndarray]) -> Moments:
    """Return the second moments of inputs [T, K], each of K columns."""
    moments = Moments(columns)
    for part in inputs:
        moments.add(part)
    return moments


class _ExactMatrices:
    """The matrices of a layer as its block stacks them, float32."""

    def __init__(self, plan: BlockPlan, read: Reader) -> None:
        self._plan, self._read = plan, read

    def weight(self, number: int) -> np.ndarray:
        """Return matrix `number`, [N, K]."""
        spec = self._plan.spec.matrices[number]
        return self._stack(number, "weight", np.empty((spec.rows, spec.columns), np.float32))

    def bias(self, number: int) -> np.ndarray | None:
        """Return the bias of matrix `number`, [N], if it has one."""
        spec = self._plan.spec.matrices[number]
        return self._stack(number, "bias", np.empty(spec.rows, np.float32)) if spec.bias else None

    def _stack(self, number: int, field: str, out: np.ndarray) -> np.ndarray:
        for piece in self._plan.pieces:
            if (piece.kind, piece.number, piece.field) == ("matrices", number, field):
                out[piece.first : piece.first + piece.size] = self._read(piece.weight)
        return out


class _RoundedMatrices:
    """The matrices of a layer that are rounded already, on the kernels."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[np.ndarray, int, np.ndarray | None]] = {}

    def add(self, number: int, writer: BlockWriter, bias: np.ndarray | None) -> None:
        """Copy matrix `number` of a layer's block into a block of its own."""
        spec = replace(writer.spec.matrices[number], bias=False, hadamard=0)  # its inputs are transformed already
        own = BlockWriter(BlockSpec((spec,)))
        for to, stored in zip(own.matrix_bytes(0), writer.matrix_bytes(number), strict=True):
            to[:] = stored
        self._blocks[number] = own.block, spec.rows, bias

    def multiply(self, number: int, inputs: np.ndarray) -> np.ndarray:
        """Return inputs [T, K] times the matrix, with its bias: [T, N]."""
        block, rows, bias = self._blocks[number]
        index = np.arange(len(inputs), dtype=np.int32)
        given = [np.ascontiguousarray(inputs, np.float32), index, block]
        outputs = library().call("share4v_linear", given, np.empty((len(inputs), rows), np.float32))
        return outputs if bias is None else outputs + bias


@dataclass(frozen=True)
class _LayerRun:
    """The inputs of each matrix, one sequence at a time, as the rounded matrices before it compute them.

    Only the residual stream is kept. The rest is computed again for the next matrix: it would not fit into memory.
    """

    layer: ReferenceLayer
    rounded: _RoundedMatrices
    sequences: Sequences

    def to_attention(self) -> Iterator[np.ndarray]:
        for index in range(len(self.sequences)):
            yield self.layer.attention_inputs(self.sequences[index])

    def to_values(self) -> Iterator[np.ndarray]:
        for index in range(len(self.sequences)):
            inputs = self.layer.attention_inputs(self.sequences[index])
            yield self.layer.averaged(inputs, self.rounded.multiply, index)

    def to_output(self) -> Iterator[np.ndarray]:
        for index in range(len(self.sequences)):
            yield self._attended(self.sequences[index])

    def to_mlp(self) -> Iterator[np.ndarray]:
        for index in range(len(self.sequences)):
            x = self.sequences[index]
            x = x + self.rounded.multiply(1, self._attended(x))
            self.sequences[index] = x
            yield self.layer.mlp_inputs(x)

    def to_down(self) -> Iterator[np.ndarray]:
        for index in range(len(self.sequences)):
            yield self._inner(self.sequences[index])

    def finish(self) -> None:
        for index in range(len(self.sequences)):
            x = self.sequences[index]
            self.sequences[index] = x + self.rounded.multiply(3, self._inner(x))

    def _attended(self, x: np.ndarray) -> np.ndarray:
        return self.layer.attended(self.layer.attention_inputs(x), self.rounded.multiply)

    def _inner(self, x: np.ndarray) -> np.ndarray:
        return self.layer.down_inputs(self.layer.mlp_inputs(x), self.rounded.multiply)
