"""Operators used outside graphs. On a CPU they are implemented with NumPy, because MindSpore's leak memory.

MindSpore 2.10 leaks 0.5 to 0.8 KB on a CPU for every concat, gather or cast in PyNative mode (measured, also for other
versions, by benchmarks/operator_memory.py): 2.4 KB per caption, 7 GB for three million captions.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def concat_rows(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors [N_i, ...] to [sum of N_i, ...], without gradients."""
    if len(parts) == 1:
        return parts[0]
    if ms.get_context("device_target") == "CPU":
        return Tensor.from_numpy(np.concatenate([part.asnumpy() for part in parts]))
    return ops.concat(tuple(parts), 0)


def stack_rows(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the rows of tensors [..., H] to [R, H], without gradients."""
    size = parts[0].shape[-1]
    if ms.get_context("device_target") == "CPU":
        return Tensor.from_numpy(np.concatenate([part.asnumpy().reshape(-1, size) for part in parts]))
    return concat_rows([part.reshape(-1, size) for part in parts])


def split_rows(tensor: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Split a tensor [sum of N_i, ...] into tensors [N_i, ...], where `counts` are the N_i; without gradients."""
    ends = np.cumsum(counts)
    if ms.get_context("device_target") == "CPU":
        array = tensor.asnumpy()
        return [Tensor(array[end - count : end]) for count, end in zip(counts, ends, strict=True)]
    return [tensor[end - count : end] for count, end in zip(counts, ends.tolist(), strict=True)]


def float32_array(tensor: Tensor) -> np.ndarray:
    """Convert a tensor of any floating-point dtype to a float32 array."""
    return (tensor if tensor.dtype == ms.float32 else tensor.astype(ms.float32)).asnumpy()  # NumPy has no bfloat16


def gather_rows(table: Tensor, index: np.ndarray) -> Tensor:
    """Return the rows `index`, int [...], of table [N, H]: [..., H], without gradients."""
    if ms.get_context("device_target") == "CPU":
        return Tensor.from_numpy(table.asnumpy()[index])
    return ops.gather(table, Tensor(index.astype(np.int32)), 0)
