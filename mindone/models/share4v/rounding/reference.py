"""LLaMA's layers in NumPy and float32, to observe what goes into each matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..configuration import TextConfig
from ..language.rope_tables import rope_tables
from .rotation import Reader, hadamard_rows

# What the matrices of a layer's block stack, in the order of the block (language/weights.py).
STACKED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
# Called with the number of a matrix in the block, and inputs [T, K]; returns the outputs [T, N], with the bias.
Multiply = Callable[[int, np.ndarray], np.ndarray]
# Called with the number of a matrix in the block, and its inputs [T, K].
Observer = Callable[[int, np.ndarray], None]


class ReferenceLayer:
    """What a layer computes between its matrices, for one sequence that starts at position 0.

    Args:
        config: the language model.
        name: the layer's name, "language_model.model.layers.0".
        read: returns a weight by its name; only the norms are read.
        hadamard: block size of the transform before the down projection, or 0.
    """

    def __init__(self, config: TextConfig, name: str, read: Reader, hadamard: int = 0) -> None:
        self.config, self.hadamard = config, hadamard
        norms = (f"{name}.{part}_layernorm.weight" for part in ("input", "post_attention"))
        self._norms = [np.asarray(read(norm), np.float32) for norm in norms]

    def attention_inputs(self, x: np.ndarray) -> np.ndarray:
        """Return the inputs of the query, key and value projections, [T, H], given the layer's, x float32 [T, H]."""
        return self._normal(0, x)

    def attended(self, inputs: np.ndarray, multiply: Multiply) -> np.ndarray:
        """Return the inputs of the output projection, [T, heads * D], given those of matrix 0."""
        query, key, value = self._heads(multiply(0, inputs))
        out = np.empty_like(query)
        for h, rows in enumerate(query):
            shared = h // (len(query) // len(key))
            out[h] = _weights(rows, key[shared], np.arange(len(rows))) @ value[shared]
        return out.transpose(1, 0, 2).reshape(len(inputs), -1)

    def averaged(self, inputs: np.ndarray, multiply: Multiply, first: int) -> np.ndarray:
        """Return averages of the inputs of matrix 0, [T, H], with the weights of attention: what values are made of.

        A head's output is its value projection of such an average, for each token. All heads would be as many averages
        of each token; here token t has that of head (first + t) mod heads.
        """
        query, key, _ = self._heads(multiply(0, inputs))
        out = np.empty_like(inputs)
        for h, rows in enumerate(query):
            tokens = np.arange((h - first) % len(query), len(inputs), len(query))
            out[tokens] = _weights(rows[tokens], key[h // (len(query) // len(key))], tokens) @ inputs
        return out

    def _heads(self, stacked: np.ndarray) -> list[np.ndarray]:
        """Outputs of matrix 0 [T, N] -> query [Hq, T, D], key and value [Hkv, T, D], rotated by their positions."""
        config, length, size = self.config, len(stacked), self.config.head_size
        query, key, value = np.split(
            stacked.reshape(length, -1, size).transpose(1, 0, 2),
            (config.num_attention_heads, config.num_attention_heads + config.kv_heads),
        )
        tables = rope_tables(config, np.arange(length)[None], np.array([length]))
        cos, sin = (table.reshape(length, size) for table in tables)
        return [_rotate(query, cos, sin), _rotate(key, cos, sin), value]

    def mlp_inputs(self, x: np.ndarray) -> np.ndarray:
        """Return the inputs of the gate and up projections, [T, H], given the stream x [T, H] behind attention."""
        return self._normal(1, x)

    def down_inputs(self, inputs: np.ndarray, multiply: Multiply) -> np.ndarray:
        """Return the inputs of the down projection, [T, I], given those of matrix 2."""
        gate, up = np.split(multiply(2, inputs), 2, 1)
        with np.errstate(over="ignore"):
            share = np.exp(-gate)
        share += 1
        np.divide(gate, share, out=share)
        share *= up
        return hadamard_rows(share, self.hadamard)

    def _normal(self, number: int, x: np.ndarray) -> np.ndarray:
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.config.rms_norm_eps))
        return x * scale * self._norms[number]


def run_layer(
    config: TextConfig, name: str, read: Reader, x: np.ndarray, observe: Observer, hadamard: int = 0
) -> np.ndarray:
    """Return a layer's outputs for a sequence x float32 [T, H] that starts at position 0.

    Args:
        config: the language model.
        name: the layer's name, "language_model.model.layers.0".
        read: returns a weight by its name; matrices are read one at a time.
        x: the sequence.
        observe: is given the inputs of each matrix.
        hadamard: block size of the transform before the down projection, or 0.
    """
    layer = ReferenceLayer(config, name, read, hadamard)

    def multiply(number: int, inputs: np.ndarray) -> np.ndarray:
        observe(number, inputs)
        has_bias = config.attention_bias if number < 2 else config.mlp_bias
        outputs = []
        for part in STACKED[number]:
            outputs.append(inputs @ np.asarray(read(f"{name}.{part}.weight"), np.float32).T)
            if has_bias:
                outputs[-1] += np.asarray(read(f"{name}.{part}.bias"), np.float32)
        return np.concatenate(outputs, 1)

    x = x + multiply(1, layer.attended(layer.attention_inputs(x), multiply))
    return x + multiply(3, layer.down_inputs(layer.mlp_inputs(x), multiply))


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Apply rotary embedding to x [heads, T, D]; cos and sin are [T, D]."""
    half = x.shape[-1] // 2
    return x * cos + np.concatenate((-x[..., half:], x[..., :half]), -1) * sin


def _weights(query: np.ndarray, key: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Weights of causal attention, [R, T], of the queries [R, D] of tokens [R] for keys [T, D], of one head."""
    scores = query @ key.T / np.float32(query.shape[1] ** 0.5)
    scores[np.arange(len(key)) > tokens[:, None]] = -np.inf
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)
