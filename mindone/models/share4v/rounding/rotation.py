"""Rotation of a LLaMA (QuaRot, Ashkboos et al. 2024): the same function, from weights that round better.

Norm weights are folded into the matrices that follow. Then the residual stream is multiplied by an orthogonal matrix R:
matrices that read it get R on their inputs, matrices that write it R^T on their outputs. The values of each head are
multiplied by a Hadamard matrix, undone in the output projection, and so are, at run time, the inputs of the down
projection. Outlier channels are spread over all channels, so one scale can serve 256 inputs instead of 32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..configuration import TextConfig
from ..kernels.blocks import BlockPlan
from ..kernels.library import library
from ..language.weights import LANGUAGE_MODEL, LM_HEAD, down_hadamard

Reader = Callable[[str], np.ndarray]

SEED = 20260  # any fixed number: the same checkpoint gives the same bits
PIECE = 1 << 17  # values of a weight that are transformed at once, so that only the result is as large as the weight


def power_of_two(size: int) -> int:
    """Return the largest power of two that divides `size`."""
    return size & -size


def hadamard_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Multiply x [R, K] in blocks of `size`, a power of two that divides K, by the orthonormal Hadamard matrix."""
    if size <= 1:
        return x
    table = np.ones(size + 1, np.float32)  # no signs, and nothing to mix
    return library().rotate_rows(table, np.ascontiguousarray(x, np.float32).reshape(-1, size)).reshape(x.shape)


def _row_pieces(weight: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return `change` of rows [R, K] of a weight of any float type, some at a time, as float32 [N, K]."""
    changed, step = np.empty(weight.shape, np.float32), max(1, PIECE // weight.shape[1])
    for first in range(0, len(weight), step):
        changed[first : first + step] = change(np.asarray(weight[first : first + step], np.float32))
    return changed


def _change_columns(weight: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `change` to the columns of a weight float32 [N, K], given as rows [C, N], in place; return the weight."""
    step = max(1, PIECE // weight.shape[0])
    for first in range(0, weight.shape[1], step):
        columns = slice(first, first + step)
        weight[:, columns] = change(weight[:, columns].T).T
    return weight


@dataclass(frozen=True)
class Rotation:
    """A random orthogonal matrix R [H, H]: signs, a Hadamard matrix in blocks, and a small dense matrix across them.

    Attributes:
        table: float32 [H + m * m], what the kernels take (csrc/format.h, Block).

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.rounding.rotation import Rotation
        >>> rotated = Rotation.random(96).rows(np.eye(96, dtype=np.float32))
        >>> np.allclose(rotated @ rotated.T, np.eye(96), atol=1e-5)
        True
    """

    table: np.ndarray

    @classmethod
    def random(cls, size: int, seed: int = SEED) -> Rotation:
        """Make the rotation of rows of `size` values; equal arguments give equal rotations."""
        rng = np.random.RandomState(seed)  # whose streams NumPy never changes
        signs = rng.randint(0, 2, size) * 2.0 - 1
        parts = size // power_of_two(size)
        mix = np.linalg.qr(rng.standard_normal((parts, parts)))[0] if parts > 1 else np.ones((1, 1))
        return cls(np.concatenate((signs, mix.reshape(-1))).astype(np.float32))

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Return x [R, H] times R, float32."""
        return library().rotate_rows(self.table, np.ascontiguousarray(x, np.float32))

    def outputs(self, weight: np.ndarray) -> np.ndarray:
        """Multiply R^T by weight float32 [H, K], in place, and return it: a matrix whose outputs are rotated."""
        return _change_columns(weight, self.rows)


class RotatedWeights:
    """Reads the weights of the language model's layers and head, rotated; norm weights become ones.

    Args:
        read: returns a weight of the checkpoint by its name.
        config: the language model.
        rotation: of the residual stream.
    """

    def __init__(self, read: Reader, config: TextConfig, rotation: Rotation) -> None:
        self.read, self.config, self.rotation = read, config, rotation

    def reader(self, plan: BlockPlan) -> Reader:
        """Return what to read the weights of a block with: the embedding table stays as it is."""
        if plan.name == LM_HEAD[:-1]:
            return self.head
        return self.layer if plan.name.startswith(f"{LANGUAGE_MODEL}layers.") else self.read

    def head(self, name: str) -> np.ndarray:
        """Return a weight of the head's block."""
        norm = f"{LANGUAGE_MODEL}norm.weight"
        return np.ones(self.config.hidden_size, np.float32) if name == norm else self._inputs(name, norm)

    def layer(self, name: str) -> np.ndarray:
        """Return a weight of a layer."""
        layer, part, kind = name.rsplit(".", 2) if "norm" not in name else (*name.rsplit(".", 1), "norm")
        if kind == "norm":
            return np.ones(self.config.hidden_size, np.float32)
        base = layer.rsplit(".", 1)[0]
        if part in ("o_proj", "down_proj"):
            if kind == "bias":
                return self.rotation.rows(self._row(name))[0]
            size = power_of_two(self.config.head_size) if part == "o_proj" else down_hadamard(self.config)
            return self.rotation.outputs(_row_pieces(self.read(name), lambda rows: hadamard_rows(rows, size)))
        norm = "input" if part in ("q_proj", "k_proj", "v_proj") else "post_attention"
        turned = self._row(name) if kind == "bias" else self._inputs(name, f"{base}.{norm}_layernorm.weight")
        if part == "v_proj":  # values are outputs, so that the transform is along the rows of each head
            size = power_of_two(self.config.head_size)
            if kind == "bias":
                turned = hadamard_rows(turned, size)
            else:
                turned = _change_columns(turned, lambda columns: hadamard_rows(columns, size))
        return turned[0] if kind == "bias" else turned

    def _inputs(self, name: str, norm: str) -> np.ndarray:
        scales = self._row(norm)  # read first: reading a weight may release the memory of the one before it
        return _row_pieces(self.read(name), lambda rows: self.rotation.rows(rows * scales))

    def _row(self, name: str) -> np.ndarray:
        return np.asarray(self.read(name), np.float32)[None]
