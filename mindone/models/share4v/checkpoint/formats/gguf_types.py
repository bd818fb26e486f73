"""The tensor types of GGUF files: how many bytes a block of values takes, and what the values are.

Layouts: ggml's `ggml-common.h` (structs `block_*`) and `ggml-quants.c` (functions `dequantize_row_*`). A row is a whole
number of blocks. Each decoder turns blocks, uint8 [n, bytes], into float32 [n, values].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # the non-linear grid of IQ4_NL and IQ4_XS


class TensorType(NamedTuple):
    """A type of GGUF tensors.

    Attributes:
        name: as ggml calls it.
        values: values of a block.
        bytes: bytes of a block.
        decode: blocks, uint8 [n, bytes] -> float32 [n, values].
        is_exact: whether float32 holds every stored value exactly and the file stores plain floats.
        codes: blocks -> integers, int8 [n, values], of a type whose values are integers times a scale of the block,
            the float16 at its start; None for the others.
    """

    name: str
    values: int
    bytes: int
    decode: Callable[[np.ndarray], np.ndarray]
    is_exact: bool = False
    codes: Callable[[np.ndarray], np.ndarray] | None = None


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte `at` of each block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, b] -> values 0 to 15, uint8 [n, 2 b]: all low halves, then all high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _float32(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32, copy=False)


def _float16(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _bfloat16(blocks: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _codes_q4_0(blocks: np.ndarray) -> np.ndarray:
    return _nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8)


def _codes_q5_0(blocks: np.ndarray) -> np.ndarray:
    return (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).astype(np.int8) - np.int8(16)


def _codes_q8_0(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8)


def _codes_iq4_nl(blocks: np.ndarray) -> np.ndarray:
    return IQ4_VALUES.astype(np.int8)[_nibbles(blocks[:, 2:])]


def _scaled(codes: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the decoder of a type whose values are integers times the float16 at a block's start."""
    return lambda blocks: _half(blocks, 0) * codes(blocks).astype(np.float32)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _fifth_bits(blocks: np.ndarray, at: int) -> np.ndarray:
    """The 32 bits at byte `at`, one for each value, as 0 or 16, uint8 [n, 32]."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * values.astype(np.float32) + _half(blocks, 2)


def _crumbs(packed: np.ndarray) -> np.ndarray:
    """Two-bit values of a super-block, uint8 [n, 64] -> [n, 256]: of each 32 bytes bits 0-1 first, then 2-3, ..."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return ((packed.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 256)


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    scales = blocks[:, :16]
    steps = _half(blocks, 80) * (scales & 15).astype(np.float32)  # [n, 16]
    minima = _half(blocks, 82) * (scales >> 4).astype(np.float32)
    values = _crumbs(blocks[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    return (steps[:, :, None] * values - minima[:, :, None]).reshape(-1, 256)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    low = _nibbles(blocks[:, 96:104])  # [n, 16]
    high = (blocks[:, None, 104:108] >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)) & 3
    scales = (low | high.reshape(-1, 16) << 4).astype(np.float32) - 32
    masks = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    third = ((blocks[:, None, :32] >> masks) & 1).reshape(-1, 256)  # 1: the value stays, 0: 4 is subtracted
    values = _crumbs(blocks[:, 32:96]).astype(np.float32) - 4 * (1 - third.astype(np.float32))
    steps = _half(blocks, 108) * scales
    return (steps[:, :, None] * values.reshape(-1, 16, 16)).reshape(-1, 256)


def _six_bit_pairs(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eight scales and eight minima in the 12 bytes of Q4_K and Q5_K, float32 [n, 8] each."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_groups(blocks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Scale the values 0 to 31 of Q4_K or Q5_K, [n, 8, 32], by their group's scale and minimum."""
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    steps, offsets = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (steps[:, :, None] * values.astype(np.float32) - offsets[:, :, None]).reshape(-1, 256)


def _k_nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 128] -> [n, 8, 32]: of each 32 bytes the low halves first, then the high halves."""
    parts = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([parts & 15, parts >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    return _k_groups(blocks, _k_nibbles(blocks[:, 16:]))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    bits = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & 1  # [n, 8, 32]
    return _k_groups(blocks, _k_nibbles(blocks[:, 48:]) | bits << 4)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    halves = np.concatenate([low & 15, low >> 4], axis=2)  # [n, 2, 4, 32]
    bits = (high >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & 3
    values = (halves | bits << 4).astype(np.float32) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    steps = _half(blocks, 208) * scales  # [n, 16]
    return (steps[:, :, None] * values.reshape(-1, 16, 16)).reshape(-1, 256)


def _iq4_xs(blocks: np.ndarray) -> np.ndarray:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")  # [n, 1]
    high = (high >> np.arange(0, 16, 2, dtype=np.uint16)) & 3  # [n, 8]
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = (low | high.astype(np.uint8) << 4).astype(np.float32) - 32
    packed = blocks[:, 8:].reshape(-1, 8, 16)
    values = IQ4_VALUES[np.concatenate([packed & 15, packed >> 4], axis=2)]  # [n, 8, 32]
    return ((_half(blocks, 0) * scales)[:, :, None] * values).reshape(-1, 256)


# The number that a file gives -> the type.
TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("F32", 1, 4, _float32, is_exact=True),
    1: TensorType("F16", 1, 2, _float16, is_exact=True),
    2: TensorType("Q4_0", 32, 18, _scaled(_codes_q4_0), codes=_codes_q4_0),
    3: TensorType("Q4_1", 32, 20, _q4_1),
    6: TensorType("Q5_0", 32, 22, _scaled(_codes_q5_0), codes=_codes_q5_0),
    7: TensorType("Q5_1", 32, 24, _q5_1),
    8: TensorType("Q8_0", 32, 34, _scaled(_codes_q8_0), codes=_codes_q8_0),
    10: TensorType("Q2_K", 256, 84, _q2_k),
    11: TensorType("Q3_K", 256, 110, _q3_k),
    12: TensorType("Q4_K", 256, 144, _q4_k),
    13: TensorType("Q5_K", 256, 176, _q5_k),
    14: TensorType("Q6_K", 256, 210, _q6_k),
    20: TensorType("IQ4_NL", 32, 18, _scaled(_codes_iq4_nl), codes=_codes_iq4_nl),
    23: TensorType("IQ4_XS", 256, 136, _iq4_xs),
    30: TensorType("BF16", 1, 2, _bfloat16, is_exact=True),
}
