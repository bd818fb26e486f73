"""The kernels as MindSpore operators, to be used in graphs: in PyNative mode a call costs milliseconds."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import ops

from .library import LIBRARY


def layer_operator() -> Any:
    """Return (x [R, H], block, cache, rows int32 [R, 4], cos [R, D], sin [R, D]) -> [R, H]: one transformer layer.

    rows are (text, slot, begin, end): where a row's key and value go, and which slots it sees; slot -1 marks a row that
    is not computed, whose result means nothing. The cache is written in place.
    """
    return _operator("share4v_layer", lambda x, block, cache, rows, cos, sin: x)


def linear_operator(outputs: int) -> Any:
    """Return (x [R, K], index int32 [M], block) -> [M, outputs]: norm, product, bias and activation, as the block says.

    Row i is made of x[index[i]]; a negative index gives zeros.
    """
    return _operator("share4v_linear", lambda x, index, block: [index[0], outputs])


def embedding_operator(size: int) -> Any:
    """Return (ids int32 [R], block) -> [R, size]: rows of a table."""
    return _operator("share4v_embedding", lambda ids, block: [ids[0], size])


def _operator(function: str, shape: Any) -> Any:
    return ops.Custom(f"{LIBRARY}:{function}", shape, lambda *dtypes: ms.float32, func_type="aot")
