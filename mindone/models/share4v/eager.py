"""The operators that run outside graphs. On a CPU they go by way of NumPy.

MindSpore 2.10 keeps 0.5 to 0.8 KB there at every concat, gather or cast in PyNative mode (figures and other versions:
benchmarks/operator_memory.py). A caption came to 2.4 KB, three million to 7 GB.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def concat_rows(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [N_i, ...] -> one after the other [sum of N_i, ...]; no gradients."""
    if len(parts) == 1:
        return parts[0]
    if ms.get_context("device_target") == "CPU":
        return Tensor.from_numpy(np.concatenate([part.asnumpy() for part in parts]))
    return ops.concat(tuple(parts), 0)


def gather_rows(table: Tensor, index: np.ndarray) -> Tensor:
    """table [N, H], index int [...] -> rows [..., H]; no gradients."""
    if ms.get_context("device_target") == "CPU":
        return Tensor.from_numpy(table.asnumpy()[index])
    return ops.gather(table, Tensor(index.astype(np.int32)), 0)
