"""LLaMA's layers in NumPy and float32, to observe what goes into each matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..configuration import TextConfig
from ..language.rope_tables import rope_tables
from .rotation import Reader, hadamard_rows

# Called with the name of the first matrix that reads the inputs, and the inputs [R, K].
Observer = Callable[[str, np.ndarray], None]


def run_layer(
    config: TextConfig, name: str, read: Reader, x: np.ndarray, observe: Observer, hadamard: int = 0
) -> np.ndarray:
    """Return a layer's outputs for sequences x [B, T, H] that start at position 0.

    Args:
        config: the language model.
        name: the layer's name, "language_model.model.layers.0".
        read: returns a weight by its name; matrices are read one at a time.
        x: float32 [B, T, H].
        observe: is given the inputs of q_proj (and k, v), o_proj, gate_proj (and up), and down_proj.
        hadamard: block size of the transform before the down projection, or 0.
    """
    batch, length, hidden = x.shape
    heads, groups, size = config.num_attention_heads, config.kv_heads, config.head_size
    rows = x.reshape(-1, hidden)

    def linear(part: str, inputs: np.ndarray, bias: bool) -> np.ndarray:
        y = inputs @ np.asarray(read(f"{name}.{part}.weight"), np.float32).T
        return y + np.asarray(read(f"{name}.{part}.bias"), np.float32) if bias else y

    def normal(part: str, values: np.ndarray) -> np.ndarray:
        scale = 1 / np.sqrt((values * values).mean(-1, keepdims=True) + np.float32(config.rms_norm_eps))
        return values * scale * np.asarray(read(f"{name}.{part}.weight"), np.float32)

    def split(y: np.ndarray, count: int) -> np.ndarray:
        return y.reshape(batch, length, count, size).transpose(0, 2, 1, 3)  # [B, heads, T, D]

    inputs = normal("input_layernorm", rows)
    observe("self_attn.q_proj", inputs)
    query, key, value = (
        split(linear(f"self_attn.{part}_proj", inputs, config.attention_bias), count)
        for part, count in (("q", heads), ("k", groups), ("v", groups))
    )
    positions = np.broadcast_to(np.arange(length), (batch, length))
    cos, sin = rope_tables(config, positions, np.full(batch, length))  # [B, 1, T, D]
    attended = _attention(_rotate(query, cos, sin), _rotate(key, cos, sin), value)
    attended = attended.transpose(0, 2, 1, 3).reshape(batch * length, heads * size)
    observe("self_attn.o_proj", attended)
    rows = rows + linear("self_attn.o_proj", attended, config.attention_bias)
    inputs = normal("post_attention_layernorm", rows)
    observe("mlp.gate_proj", inputs)
    gate = linear("mlp.gate_proj", inputs, config.mlp_bias)
    with np.errstate(over="ignore"):
        gate /= 1 + np.exp(-gate)
    gate *= linear("mlp.up_proj", inputs, config.mlp_bias)
    gate = hadamard_rows(gate, hadamard)
    observe("mlp.down_proj", gate)
    return (rows + linear("mlp.down_proj", gate, config.mlp_bias)).reshape(x.shape)


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Apply rotary embedding to x [B, heads, T, D]."""
    half = x.shape[-1] // 2
    return x * cos + np.concatenate((-x[..., half:], x[..., :half]), -1) * sin


def _attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Causal attention of query [B, Hq, T, D] to key and value [B, Hkv, T, D] -> [B, Hq, T, D], a head at a time."""
    out = np.empty_like(query)
    batch, heads, length, size = query.shape
    shared = heads // key.shape[1]
    mask = np.triu(np.full((length, length), -np.inf, np.float32), 1)
    for b in range(batch):
        for h in range(heads):
            scores = query[b, h] @ key[b, h // shared].T / np.float32(size**0.5) + mask
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, h] = (scores / scores.sum(-1, keepdims=True)) @ value[b, h // shared]
    return out
