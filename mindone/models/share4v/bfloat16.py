"""bfloat16 for NumPy, which lacks it: the bits have their own dtype, so that they are not mistaken for integers."""

from __future__ import annotations

import numpy as np

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
_NAN = 0x7FC0


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Round floats to the nearest bfloat16, ties to even; values that are too large become infinite.

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.bfloat16 import from_bfloat16, to_bfloat16
        >>> float(from_bfloat16(to_bfloat16(np.array([0.1], np.float32)))[0])
        0.10009765625
    """
    bits: np.ndarray = np.array(array, np.float32, order="C", ndmin=1).view(np.uint32)
    missing = np.isnan(bits.view(np.float32))
    odd = (bits >> 16) & 1
    bits += 0x7FFF  # in place, since the tensor may be large
    bits += odd
    bits >>= 16
    half = bits.astype("<u2")
    half[missing] = _NAN
    return half.view(BFLOAT16).reshape(np.shape(array))


def from_bfloat16(stored: np.ndarray) -> np.ndarray:
    """Return the same numbers as float32, which represents each exactly."""
    bits = stored["bfloat16"].astype(np.uint32)
    np.left_shift(bits, np.uint32(16), out=bits)  # in place, also for a 0-dimensional array
    return bits.view(np.float32)


def dtype_name(array: np.ndarray) -> str:
    """Return the name of an array's dtype, including "bfloat16"."""
    return "bfloat16" if array.dtype == BFLOAT16 else array.dtype.name
