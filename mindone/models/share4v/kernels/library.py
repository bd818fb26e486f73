"""The shared library of the kernels: loads it, selects an instruction set, and calls it outside MindSpore graphs."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("libshare4v.so")
# Environment variable that selects the kernels' instruction set: portable, avx2, avx512 or amx; by default the fastest
# that the CPU supports.
INSTRUCTION_SET_VARIABLE = "SHARE4V_KERNELS"


class KernelError(RuntimeError):
    """A kernel rejected its arguments."""


class KernelsMissingError(OSError):
    """The kernels were not built or cannot be loaded; the message says why and what to do."""


class Library:
    """The functions of the shared library. Arrays must be C-contiguous; results are new arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        for name in ("share4v_kernels_at", "share4v_selected"):
            getattr(self._library, name).restype = ctypes.c_char_p
        for name in ("share4v_busy_seconds", "share4v_peak", "share4v_bandwidth"):
            getattr(self._library, name).restype = ctypes.c_double

    def instruction_sets(self) -> list[str]:
        """Return the instruction sets that the library was built for and this CPU supports, fastest first."""
        names: list[str] = []
        while name := self._library.share4v_kernels_at(len(names)):
            names.append(name.decode())
        return names

    @property
    def instruction_set(self) -> str:
        """The instruction set of the kernels in use."""
        selected: str = self._library.share4v_selected().decode()
        return selected

    def select(self, instruction_set: str) -> None:
        """Use the kernels of this instruction set from now on.

        Raises:
            ValueError: the name is unknown, or the CPU or the build does not support it.
        """
        if self._library.share4v_select(instruction_set.encode()):
            raise ValueError(
                f"kernels for {instruction_set!r} are not supported on this machine: use one of "
                f"{', '.join(self.instruction_sets())} (set by the environment variable {INSTRUCTION_SET_VARIABLE})"
            )

    @property
    def threads(self) -> int:
        """The number of threads of a kernel. Set 0 for the default, one per CPU available to the process."""
        return int(self._library.share4v_threads())

    @threads.setter
    def threads(self, count: int) -> None:
        self._library.share4v_set_threads(count)

    @property
    def busy_seconds(self) -> float:
        """Total time spent in operators since the library was loaded, in seconds."""
        return float(self._library.share4v_busy_seconds())

    def peak_flops(self) -> float:
        """Measure the peak float32 operations per second of all threads."""
        return float(self._library.share4v_peak())

    def read_bandwidth(self, data: np.ndarray) -> float:
        """Measure the bytes per second that all threads can read; `data` is uint8, hundreds of megabytes."""
        return float(self._library.share4v_bandwidth(_pointer(data), ctypes.c_int64(data.size)))

    def pack(self, block: np.ndarray, number: int, first: int, weight: np.ndarray, source_type: int) -> int:
        """Pack weight [R, K] into the rows first .. first + R - 1 of matrix `number` of a block, in place.

        Returns 1 if a value is not finite or too large for the matrix's type, else 0.
        """
        rows = ctypes.c_int64(len(weight))
        return int(
            self._library.share4v_pack(
                _pointer(block), number, ctypes.c_int64(first), rows, _pointer(weight), source_type
            )
        )

    def unpack(self, block: np.ndarray, number: int, rows: int, columns: int) -> np.ndarray:
        """Return matrix `number` of a block as float32 [rows, columns]."""
        out = np.empty((rows, columns), np.float32)
        self._library.share4v_unpack(_pointer(block), number, _pointer(out))
        return out

    def call(self, function: str, inputs: list[np.ndarray], output: np.ndarray) -> np.ndarray:
        """Call an operator as MindSpore would; it fills `output`, which is returned.

        Raises:
            KernelError: the operator rejected the arguments (status 1: count, 2: dtype, 3: block or cache, 4: shape,
                5: row).
        """
        arrays = [*inputs, output]
        count = len(arrays)
        params = (ctypes.c_void_p * count)(*[array.ctypes.data for array in arrays])
        ndims = (ctypes.c_int * count)(*[array.ndim for array in arrays])
        sizes = [(ctypes.c_int64 * max(array.ndim, 1))(*array.shape) for array in arrays]
        shapes = (ctypes.c_void_p * count)(*[ctypes.addressof(size) for size in sizes])
        dtypes = (ctypes.c_char_p * count)(*[array.dtype.name.encode() for array in arrays])
        status = getattr(self._library, function)(count, params, ndims, shapes, dtypes, None, None)
        if status:
            raise KernelError(
                f"{function} rejected its arguments (status {status}): shapes {[array.shape for array in arrays]}"
            )
        return output

    def attention(
        self,
        memory: np.ndarray,
        layer: int,
        rows: np.ndarray,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
    ) -> np.ndarray:
        """Write key and value [R, Hkv * D] into a cache, then attend: query [R, Hq, D], scaled -> [R, Hq, D]."""
        out = np.empty_like(query)
        count, heads = query.shape[:2]
        arguments = [_pointer(array) for array in (query, key, value, out)]
        numbers = ctypes.c_int64(count), ctypes.c_int64(heads)
        status = self._library.share4v_attention(
            _pointer(memory), ctypes.c_int64(layer), _pointer(rows), *numbers, *arguments
        )
        if status:
            raise KernelError(f"attention rejected its rows (status {status})")
        return out

    def norm(self, kind: int, eps: float, weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
        """Normalize the rows of x [R, H]; `kind` is a value of packing.NORMS."""
        both = np.concatenate((weight, weight if bias is None else bias)).astype(np.float32)
        out = np.empty_like(x)
        size, count = ctypes.c_int64(x.shape[1]), ctypes.c_int64(len(x))
        self._library.share4v_norm(
            kind, ctypes.c_float(eps), size, _pointer(both), bias is not None, count, _pointer(x), _pointer(out)
        )
        return out

    def rotary(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """Apply rotary embedding to heads x [R, D]; cos and sin are [R, D]."""
        out = x.copy()
        count, size = map(ctypes.c_int64, x.shape)
        self._library.share4v_rotary(count, size, _pointer(cos), _pointer(sin), _pointer(out))
        return out

    def activation(self, kind: int, x: np.ndarray, up: np.ndarray | None = None) -> np.ndarray:
        """Apply an activation to x; `kind` is a value of packing.ACTIVATIONS, and gated SiLU multiplies by `up`."""
        out = x.copy()
        second = _pointer(out if up is None else up)
        self._library.share4v_activation(kind, ctypes.c_int64(x.size), _pointer(out), second)
        return out


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@cache
def library() -> Library:
    """Return the kernels; the library is loaded on the first call.

    Raises:
        KernelsMissingError: the kernels were not built, or cannot be loaded.
        ValueError: SHARE4V_KERNELS names an instruction set that this machine does not support.
    """
    if not LIBRARY.is_file():
        raise KernelsMissingError(
            f"the CPU kernels were not built ({LIBRARY.name} is missing): install a C++ compiler with OpenMP and "
            "reinstall mindone-share4v; without the kernels only float32 and float16 work, on MindSpore's operators"
        )
    try:
        loaded = Library(LIBRARY)
    except OSError as error:
        raise KernelsMissingError(f"the CPU kernels cannot be loaded: {error}") from error
    requested = os.environ.get(INSTRUCTION_SET_VARIABLE)
    if requested:
        loaded.select(requested)
    return loaded


@cache
def kernels_available() -> bool:
    """Return whether the kernels can be used; if not, log the reason once."""
    try:
        library()
    except KernelsMissingError as error:
        logger.warning("%s", error)
        return False
    return True
