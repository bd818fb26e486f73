"""Rounds the layers of a language model with GPTQ, one after the other, on sequences that run through all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..configuration import TextConfig
from ..kernels.blocks import BlockPlan
from ..kernels.packing import BlockWriter
from .gptq import gptq
from .importance import MATRICES
from .kernel_layers import run_block
from .reference import run_layer
from .rotation import Reader, Rotation


class LayerRounder:
    """Packs one layer's block at a time; each layer sees what the rounded layers before it compute.

    Args:
        config: the language model.
        read: returns a weight of a layer by its name.
        rotation: of the residual stream, if the weights are rotated; else None.
        sequences: the calibration data, float32 [T, H] each: embeddings of tokens and of pictures.

    Attributes:
        hidden: the inputs of the next layer, float32 [T, H] each.
    """

    def __init__(
        self, config: TextConfig, read: Reader, rotation: Rotation | None, sequences: Sequence[np.ndarray]
    ) -> None:
        self.config, self.read, self.rotation = config, read, rotation
        self.hidden = [np.ascontiguousarray(sequence, np.float32) for sequence in sequences]

    def block(self, plan: BlockPlan, writer: BlockWriter) -> np.ndarray:
        """Round a layer's matrices into `writer`, whose vectors are written, and return its block."""
        stored: dict[str, np.ndarray] = {}

        def read(name: str) -> np.ndarray:
            if name not in stored:
                stored[name] = np.asarray(self.read(name), np.float32)
            return stored[name]

        moments = self._second_moments(plan, read)
        for number in range(len(plan.spec.matrices)):
            pieces = [piece for piece in plan.pieces if (piece.kind, piece.number) == ("matrices", number)]
            names = [piece.weight for piece in pieces if piece.field == "weight"]
            weight = np.concatenate([read(name) for name in names]) if len(names) > 1 else read(names[0])
            for name in names:
                del stored[name]
            writer.codes(number, gptq(np.ascontiguousarray(weight), moments.pop(number)))
        self.advance(plan, writer.block)
        return writer.block

    def advance(self, plan: BlockPlan, block: np.ndarray) -> None:
        """Run the sequences through a finished block."""
        layer = plan.spec.cache_layer
        for index, x in enumerate(self.hidden):  # in place: the sequences of pictures can take gigabytes
            self.hidden[index] = run_block(self.config, block, layer, x)

    def _second_moments(self, plan: BlockPlan, read: Reader) -> dict[int, np.ndarray]:
        """Return the mean of x x^T over the inputs of each matrix, float32 [K, K]."""
        moments: dict[int, np.ndarray] = {}
        count = sum(map(len, self.hidden))

        def observe(part: str, inputs: np.ndarray) -> None:
            number = MATRICES[part]
            if number not in moments:
                moments[number] = np.zeros((inputs.shape[1],) * 2, np.float32)
            moments[number] += inputs.T @ (inputs / np.float32(count))

        for x in self.hidden:
            start = self.rotation.rows(x) if self.rotation and plan.spec.is_rotated else x
            run_layer(self.config, plan.name, read, start[None], observe, plan.spec.matrices[3].hadamard)
        return moments
