"""Weights as integers with scales, in the layouts of Ascend's product with integer weights.

Both are weight-only: activations stay float16 or bfloat16, and the operator computes x @ ((weight + offset) * scale).

- int8: [O, I], one scale per output, symmetric; passed transposed, as CANN recommends for scales per output.
- int4: [I, O / 2], one scale and one offset per output and group of inputs; not transposed, as CANN recommends for
  groups. A byte holds outputs 2n (low four bits) and 2n + 1 (high four bits), as MindSpore's tests pack them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Narrow = Callable[[np.ndarray], np.ndarray]
# Shares of the range of a group of weights that are tried for int4.
RANGES = (1.0, 0.92, 0.84, 0.76, 0.68)


@dataclass(frozen=True)
class Rounded:
    """A matrix [O, I] as integers.

    Attributes:
        weight: int8 [O, I] for int8; int8 [I, O / 2] for int4, two outputs per byte.
        scale: float32, representable in the type of the activations; [O] for int8, [I / G, O] for int4.
        offset: as `scale`, added to the integers before they are scaled; None if there is none.
    """

    weight: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None = None


def round_int8(weight: np.ndarray, narrow: Narrow) -> Rounded:
    """Round a matrix [O, I] to int8, -127 to 127, with one scale per output.

    Args:
        weight: float [O, I].
        narrow: rounds an array to the type of the activations and returns it as float32.
    """
    wide = np.asarray(weight, np.float32)
    scale = _positive(narrow(np.abs(wide).max(1) / 127))
    integers = np.clip(np.rint(wide / scale[:, None]), -127, 127).astype(np.int8)
    return Rounded(integers, scale)


def round_int4(weight: np.ndarray, group: int, narrow: Narrow, importance: np.ndarray | None = None) -> Rounded:
    """Round a matrix [O, I] to int4, -8 to 7, with one scale and one offset per output and `group` inputs.

    Offsets are integers, and zero is one of the values of each group: so adding the offset is exact in every type. Of
    some ranges that do not include a group's largest weights, the one with the smallest squared error is taken.

    Args:
        weight: float [O, I]; O is even and I a multiple of `group`.
        group: inputs that share a scale.
        narrow: as in `round_int8`.
        importance: float [I], what the squared error of each input's weights counts; by default the same.
    """
    columns = np.ascontiguousarray(np.asarray(weight, np.float32).T)  # [I, O]
    inputs, outputs = columns.shape
    groups = columns.reshape(inputs // group, group, outputs)  # [I / G, G, O]
    counts = np.ones(inputs, np.float32) if importance is None else importance.astype(np.float32)
    low, high = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)  # [I / G, O]
    integers = np.empty(groups.shape, np.int8)
    best = np.full(low.shape, np.inf, np.float32)
    scale, offset = np.ones_like(low), np.zeros_like(low)
    for share in RANGES:
        tried = _positive(narrow((high - low) * (share / 15)))
        shift = np.clip(np.rint(low * share / tried) + 8, -7, 8)  # zero is between -8 + shift and 7 + shift
        rounded = np.clip(np.rint(groups / tried[:, None]) - shift[:, None], -8, 7)
        error = (rounded + shift[:, None]) * tried[:, None] - groups
        total = np.einsum("ngo,ngo,ng->no", error, error, counts.reshape(-1, group))
        better = total < best
        best, scale, offset = (
            np.where(better, total, best),
            np.where(better, tried, scale),
            np.where(better, shift, offset),
        )
        np.copyto(integers, rounded.astype(np.int8), where=better[:, None])
    return Rounded(pack_int4(integers.reshape(inputs, outputs)), scale, offset)


def pack_int4(integers: np.ndarray) -> np.ndarray:
    """Pack int8 [I, O] of values -8 to 7 into int8 [I, O / 2]: output 2n in the low four bits, 2n + 1 in the high.

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.nn.integer_weights import pack_int4
        >>> pack_int4(np.array([[1, -1]], np.int8)).view(np.uint8).item() == 0xF1
        True
    """
    nibbles = integers.view(np.uint8) & 0x0F
    return (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).view(np.int8)


def unpack_int4(packed: np.ndarray) -> np.ndarray:
    """Undo `pack_int4`: int8 [I, O / 2] -> int8 [I, O]."""
    low, high = (packed << 4).astype(np.int8) >> 4, packed >> 4  # the shift of a signed integer keeps its sign
    return np.stack((low, high), -1).reshape(packed.shape[0], -1)


def restored(rounded: Rounded) -> np.ndarray:
    """Return the float32 matrix [O, I] that the integers and scales mean."""
    if rounded.scale.ndim == 1:
        return rounded.weight * rounded.scale[:, None]
    integers = unpack_int4(rounded.weight).astype(np.float32)
    groups = integers.reshape(len(rounded.scale), -1, integers.shape[1])
    offset = 0 if rounded.offset is None else rounded.offset[:, None]
    wide: np.ndarray = ((groups + offset) * rounded.scale[:, None]).reshape(integers.shape).T
    return wide


def _positive(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, np.float32(1))
