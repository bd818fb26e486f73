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


def stack_rows(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [..., H] -> all their rows, one after the other [R, H]; no gradients."""
    size = parts[0].shape[-1]
    if ms.get_context("device_target") == "CPU":
        return Tensor.from_numpy(np.concatenate([part.asnumpy().reshape(-1, size) for part in parts]))
    return concat_rows([part.reshape(-1, size) for part in parts])


def split_rows(tensor: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """A tensor [sum of N_i, ...] -> tensors [N_i, ...]; no gradients."""
    ends = np.cumsum(counts)
    if ms.get_context("device_target") == "CPU":
        array = tensor.asnumpy()
        return [Tensor(array[end - count : end]) for count, end in zip(counts, ends, strict=True)]
    return [tensor[end - count : end] for count, end in zip(counts, ends.tolist(), strict=True)]


def float32_array(tensor: Tensor) -> np.ndarray:
    """A tensor of any floating-point type as a float32 array."""
    return (tensor if tensor.dtype == ms.float32 else tensor.astype(ms.float32)).asnumpy()  # NumPy has no bfloat16


def gather_rows(table: Tensor, index: np.ndarray) -> Tensor:
    """table [N, H], index int [...] -> rows [..., H]; no gradients."""
    if ms.get_context("device_target") == "CPU":
        return Tensor.from_numpy(table.asnumpy()[index])
    return ops.gather(table, Tensor(index.astype(np.int32)), 0)
