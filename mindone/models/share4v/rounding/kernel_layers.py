"""Runs packed blocks of the language model outside MindSpore: what conversion and measurements compute with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..configuration import TextConfig
from ..kernels.cache_memory import CacheMemory
from ..kernels.library import library
from ..language.rope_tables import rope_tables


def run_block(
    config: TextConfig, block: np.ndarray, layer: int, x: np.ndarray, cache_dtype: str = "float32"
) -> np.ndarray:
    """Return a layer's outputs [T, H] for one sequence x float32 [T, H] that starts at position 0.

    Args:
        config: the language model.
        block: the layer's block, uint8.
        layer: its number.
        x: the sequence.
        cache_dtype: type of the cached keys and values.
    """
    length = len(x)
    cache = CacheMemory(layer + 1, 1, config.kv_heads, config.head_size, length, cache_dtype)
    rows = np.zeros((length, 4), np.int32)  # (sequence, slot, begin, end)
    rows[:, 1] = np.arange(length)
    rows[:, 3] = rows[:, 1] + 1
    tables = rope_tables(config, np.arange(length)[None], np.array([length]))
    cos, sin = (np.ascontiguousarray(table.reshape(length, -1)) for table in tables)
    inputs = [np.ascontiguousarray(x, np.float32), block, cache.memory, rows, cos, sin]
    return library().call("share4v_layer", inputs, np.empty((length, config.hidden_size), np.float32))


def run_model(
    config: TextConfig, blocks: Sequence[np.ndarray], ids: np.ndarray, cache_dtype: str = "float32"
) -> np.ndarray:
    """Return the logits [T, V] of one sequence of ids [T]; `blocks` are the embeddings, the layers, and the head."""
    table, *layers, head = blocks
    x = np.empty((len(ids), config.hidden_size), np.float32)
    library().call("share4v_embedding", [np.asarray(ids, np.int32), table], x)
    for number, block in enumerate(layers):
        x = run_block(config, block, number, x, cache_dtype)
    index = np.arange(len(ids), dtype=np.int32)
    return library().call("share4v_linear", [x, index, head], np.empty((len(ids), config.vocab_size), np.float32))
