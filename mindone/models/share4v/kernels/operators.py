"""The kernels that a model consists of: a transformer layer, a linear layer, an embedding table.

They are called without MindSpore, and without Python's global lock. MindSpore could run them as custom operators in its
graphs, but it runs one graph at a time in a process, so models would have to take turns; and a graph is compiled.
"""

from __future__ import annotations

import numpy as np

from .library import library


def layer(
    x: np.ndarray, block: np.ndarray, cache: np.ndarray, rows: np.ndarray, cos: np.ndarray, sin: np.ndarray
) -> np.ndarray:
    """Compute a transformer layer: x float32 [R, H] -> [R, H].

    Args:
        x: the hidden states of R tokens.
        block: uint8, the layer's weights.
        cache: uint8, `CacheMemory.memory`, which is updated in place.
        rows: int32 [R, 4]; a row is (sequence, slot, begin, end): its key and value are written to `slot` of the
            sequence's cache, and it attends to the slots begin .. end - 1. Rows with slot -1 are not computed; their
            results are undefined.
        cos, sin: float32 [R, D]; ignored if the block has no rotary embedding.

    Raises:
        KernelError: the arguments do not fit each other.
    """
    return library().call("share4v_layer", [x, block, cache, rows, cos, sin], np.empty_like(x))


def linear(x: np.ndarray, index: np.ndarray, block: np.ndarray, outputs: int) -> np.ndarray:
    """Compute a linear layer: x float32 [R, K], index int32 [M] -> [M, outputs].

    Output row i is computed from x[index[i]]: norm, product, bias and activation, as the block specifies. A negative
    index gives zeros.

    Raises:
        KernelError: the arguments do not fit each other.
    """
    return library().call("share4v_linear", [x, index, block], np.empty((len(index), outputs), np.float32))


def embedding(ids: np.ndarray, block: np.ndarray, size: int) -> np.ndarray:
    """Look up ids int32 [R] in an embedding table: [R, size].

    Raises:
        KernelError: an id is outside the table, or the arguments do not fit each other.
    """
    return library().call("share4v_embedding", [ids, block], np.empty((len(ids), size), np.float32))
