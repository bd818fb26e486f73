"""Rounds the layers of a language model with GPTQ, one after the other, on sequences that run through all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..configuration import TextConfig
from ..kernels.blocks import BlockPlan
from ..kernels.library import library
from ..kernels.packing import BlockSpec, BlockWriter
from .gptq import gptq
from .moments import Moments
from .reference import ReferenceLayer
from .rotation import Reader, Rotation

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]  # inputs [T, K] of a matrix in the rounded model, and in the exact one


class Sequences(Protocol):
    """A list of sequences, float32 [T, H] each, in memory or in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...

    def __setitem__(self, index: int, value: np.ndarray, /) -> None: ...


@dataclass(frozen=True)
class Streams:
    """The calibration data on its way through the layers: what the next layer's inputs are.

    Attributes:
        rounded: in the model whose layers so far are rounded.
        exact: in the exact model.
    """

    rounded: Sequences
    exact: Sequences

    @classmethod
    def of(cls, sequences: Iterable[np.ndarray]) -> Streams:
        """Return the inputs of the first layer, in memory: embeddings of tokens and of pictures, [T, H] each."""
        rounded = [np.ascontiguousarray(sequence, np.float32) for sequence in sequences]
        return cls(rounded, list(rounded))


class LayerRounder:
    """Packs one layer's block at a time. Each matrix sees what the rounded matrices before it compute.

    Args:
        config: the language model.
        read: returns a weight of a layer by its name.
        rotation: of the residual stream, if the weights are rotated; else None.
    """

    def __init__(self, config: TextConfig, read: Reader, rotation: Rotation | None) -> None:
        self.config, self.read, self.rotation = config, read, rotation

    def block(self, plan: BlockPlan, writer: BlockWriter, streams: Streams) -> np.ndarray:
        """Round a layer's matrices into `writer`, whose vectors are written, and return its block.

        The streams become the layer's outputs, one sequence at a time.
        """
        if self.rotation and plan.spec.is_rotated:
            for part in (streams.rounded, streams.exact):
                for index in range(len(part)):
                    part[index] = self.rotation.rows(part[index])
        layer = ReferenceLayer(self.config, plan.name, self.read, plan.spec.matrices[3].hadamard)
        run = _LayerRun(layer, _ExactMatrices(plan, self.read), _RoundedMatrices(), streams)
        for number, inputs in enumerate((run.to_attention, run.to_output, run.to_mlp, run.to_down)):
            moments = Moments(plan.spec.matrices[number].columns)
            for pair in inputs():
                moments.add(*pair)
            writer.codes(number, gptq(run.exact.weight(number), moments))
            del moments
            run.rounded.add(number, writer, run.exact.bias(number))
        run.finish()
        return writer.block


class _ExactMatrices:
    """The matrices of a layer as its block stacks them, float32; each is in memory from its first use to its last."""

    def __init__(self, plan: BlockPlan, read: Reader) -> None:
        self._plan, self._read = plan, read
        self._weights: dict[int, np.ndarray] = {}
        self._biases = {
            number: self._stack(number, "bias", np.empty(spec.rows, np.float32)) if spec.bias else None
            for number, spec in enumerate(plan.spec.matrices)
        }

    def weight(self, number: int) -> np.ndarray:
        """Return matrix `number`, [N, K]."""
        if number not in self._weights:
            spec = self._plan.spec.matrices[number]
            self._weights[number] = self._stack(number, "weight", np.empty((spec.rows, spec.columns), np.float32))
        return self._weights[number]

    def bias(self, number: int) -> np.ndarray | None:
        """Return the bias of matrix `number`, [N], if it has one."""
        return self._biases[number]

    def multiply(self, number: int, inputs: np.ndarray) -> np.ndarray:
        """Return inputs [T, K] times the matrix, with its bias: [T, N]."""
        return _with_bias(inputs @ self.weight(number).T, self._biases[number])

    def drop(self, *numbers: int) -> None:
        """Forget matrices."""
        for number in numbers:
            del self._weights[number]

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
        return _with_bias(library().call("share4v_linear", given, np.empty((len(inputs), rows), np.float32)), bias)


def _with_bias(outputs: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if bias is not None:
        outputs += bias
    return outputs


@dataclass(frozen=True)
class _LayerRun:
    """A layer's way through its matrices, of both models and all sequences, one sequence at a time.

    What is not kept in the streams is computed again for the next matrix: with pictures it would not fit into memory.
    """

    layer: ReferenceLayer
    exact: _ExactMatrices
    rounded: _RoundedMatrices
    streams: Streams

    def to_attention(self) -> Pairs:
        for _, x, y in self._sequences():
            yield self.layer.attention_inputs(x), self.layer.attention_inputs(y)

    def to_output(self) -> Pairs:
        for index, x, y in self._sequences():
            attended = self.layer.attended(self.layer.attention_inputs(y), self.exact.multiply)
            yield self._attended(x), attended
            self.streams.exact[index] = y + self.exact.multiply(1, attended)
        self.exact.drop(0)

    def to_mlp(self) -> Pairs:
        for index, x, y in self._sequences():
            x = x + self.rounded.multiply(1, self._attended(x))
            self.streams.rounded[index] = x
            yield self.layer.mlp_inputs(x), self.layer.mlp_inputs(y)
        self.exact.drop(1)

    def to_down(self) -> Pairs:
        for index, x, y in self._sequences():
            inner = self.layer.down_inputs(self.layer.mlp_inputs(y), self.exact.multiply)
            yield self._inner(x), inner
            self.streams.exact[index] = y + self.exact.multiply(3, inner)
        self.exact.drop(2)

    def finish(self) -> None:
        for index, x, _ in self._sequences():
            self.streams.rounded[index] = x + self.rounded.multiply(3, self._inner(x))

    def _sequences(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for index in range(len(self.streams.rounded)):
            yield index, self.streams.rounded[index], self.streams.exact[index]

    def _attended(self, x: np.ndarray) -> np.ndarray:
        return self.layer.attended(self.layer.attention_inputs(x), self.rounded.multiply)

    def _inner(self, x: np.ndarray) -> np.ndarray:
        return self.layer.down_inputs(self.layer.mlp_inputs(x), self.rounded.multiply)
