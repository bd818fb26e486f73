"""The kernels as MindSpore custom operators, for use in graphs; in PyNative mode each call costs milliseconds."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import ops

from .library import LIBRARY


def layer_operator() -> Any:
    """Return the operator of a transformer layer: (x [R, H], block, cache, rows, cos [R, D], sin [R, D]) -> [R, H].

    A row of `rows`, int32 [R, 4], is (sequence, slot, begin, end): its key and value are written to `slot` of the
    sequence's cache, and it attends to the slots begin .. end - 1. Rows with slot -1 are not computed; their results
    are undefined. The cache is updated in place.
    """
    return _operator("share4v_layer", lambda x, block, cache, rows, cos, sin: x)


def linear_operator(outputs: int) -> Any:
    """Return the operator of a linear layer: (x [R, K], index int32 [M], block) -> [M, outputs].

    Output row i is computed from x[index[i]]: norm, product, bias and activation, as the block specifies. A negative
    index gives zeros.
    """
    return _operator("share4v_linear", lambda x, index, block: [index[0], outputs])


def embedding_operator(size: int) -> Any:
    """Return the operator of an embedding table: (ids int32 [R], block) -> [R, size]."""
    return _operator("share4v_embedding", lambda ids, block: [ids[0], size])


def _operator(function: str, shape: Any) -> Any:
    return ops.Custom(f"{LIBRARY}:{function}", shape, lambda *dtypes: ms.float32, func_type="aot")
