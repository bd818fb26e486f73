"""The compiled kernels: found, chosen for this CPU, and called from Python where no graph is needed."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("libshare4v.so")
# Names a kind of CPU whose kernels to use in place of the best: portable, avx2, avx512, amx.
KIND_VARIABLE = "SHARE4V_KERNELS"


class KernelError(RuntimeError):
    """A kernel refused its arguments."""


class KernelsMissingError(OSError):
    """There are no kernels here; the message says why and what to do."""


class Library:
    """The shared library's functions. Arrays are C-contiguous; results are new arrays unless said otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        for name in ("share4v_kernels_at", "share4v_selected"):
            getattr(self._library, name).restype = ctypes.c_char_p
        for name in ("share4v_busy_seconds", "share4v_peak", "share4v_bandwidth"):
            getattr(self._library, name).restype = ctypes.c_double

    def kinds(self) -> list[str]:
        """Return the kinds of CPU whose kernels run here, best first."""
        names: list[str] = []
        while name := self._library.share4v_kernels_at(len(names)):
            names.append(name.decode())
        return names

    @property
    def kind(self) -> str:
        """The kind whose kernels are in use."""
        selected: str = self._library.share4v_selected().decode()
        return selected

    def select(self, kind: str) -> None:
        """Use the kernels of `kind` from now on.

        Raises:
            ValueError: they do not run here.
        """
        if self._library.share4v_select(kind.encode()):
            raise ValueError(f"kernels {kind!r} do not run here: expected one of {', '.join(self.kinds())}")

    @property
    def threads(self) -> int:
        """How many threads a kernel uses; by default every CPU the process may run on. 0 brings the default back."""
        return int(self._library.share4v_threads())

    @threads.setter
    def threads(self, count: int) -> None:
        self._library.share4v_set_threads(count)

    @property
    def busy_seconds(self) -> float:
        """Time spent in operators since the library was loaded."""
        return float(self._library.share4v_busy_seconds())

    def peak_flops(self) -> float:
        """Measure the float32 operations a second that all threads can do."""
        return float(self._library.share4v_peak())

    def read_bandwidth(self, data: np.ndarray) -> float:
        """Measure the bytes a second that all threads can read, on `data` (uint8, hundreds of megabytes)."""
        return float(self._library.share4v_bandwidth(_pointer(data), ctypes.c_int64(data.size)))

    def pack(self, block: np.ndarray, number: int, first: int, weight: np.ndarray, source_type: int) -> int:
        """Write weight [R, K] into a block in place; return 1 where a value does not fit its type."""
        rows = ctypes.c_int64(len(weight))
        return int(
            self._library.share4v_pack(
                _pointer(block), number, ctypes.c_int64(first), rows, _pointer(weight), source_type
            )
        )

    def unpack(self, block: np.ndarray, number: int, rows: int, columns: int) -> np.ndarray:
        """Return matrix `number` of a block, float32 [rows, columns]."""
        out = np.empty((rows, columns), np.float32)
        self._library.share4v_unpack(_pointer(block), number, _pointer(out))
        return out

    def call(self, function: str, inputs: list[np.ndarray], output: np.ndarray) -> np.ndarray:
        """Call one of the operators as MindSpore does, and return `output`, which it fills.

        Raises:
            KernelError: it refused.
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
                f"{function} refused its arguments (status {status}): {[array.shape for array in arrays]}"
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
        """Write key and value [R, Hkv * D] into a cache and attend: query [R, Hq, D] -> [R, Hq, D]."""
        out = np.empty_like(query)
        count, heads = query.shape[:2]
        arguments = [_pointer(array) for array in (query, key, value, out)]
        numbers = ctypes.c_int64(count), ctypes.c_int64(heads)
        status = self._library.share4v_attention(
            _pointer(memory), ctypes.c_int64(layer), _pointer(rows), *numbers, *arguments
        )
        if status:
            raise KernelError(f"attention refused its rows (status {status})")
        return out

    def norm(self, kind: int, eps: float, weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
        """Normalise the rows of x [R, H]; kinds are packing.NORMS."""
        both = np.concatenate((weight, weight if bias is None else bias)).astype(np.float32)
        out = np.empty_like(x)
        size, count = ctypes.c_int64(x.shape[1]), ctypes.c_int64(len(x))
        self._library.share4v_norm(
            kind, ctypes.c_float(eps), size, _pointer(both), bias is not None, count, _pointer(x), _pointer(out)
        )
        return out

    def rotary(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """Rotate heads x [R, D] by tables [R, D]."""
        out = x.copy()
        count, size = map(ctypes.c_int64, x.shape)
        self._library.share4v_rotary(count, size, _pointer(cos), _pointer(sin), _pointer(out))
        return out

    def activation(self, kind: int, x: np.ndarray, up: np.ndarray | None = None) -> np.ndarray:
        """Apply an activation of packing.ACTIVATIONS to x; the gated one multiplies by `up`."""
        out = x.copy()
        second = _pointer(out if up is None else up)
        self._library.share4v_activation(kind, ctypes.c_int64(x.size), _pointer(out), second)
        return out


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@cache
def library() -> Library:
    """Return the kernels, loaded once.

    Raises:
        KernelsMissingError: they were not built, or do not load here.
        ValueError: SHARE4V_KERNELS names kernels that do not run here.
    """
    if not LIBRARY.is_file():
        raise KernelsMissingError(
            f"the CPU kernels were not built ({LIBRARY.name} is missing): install a C++ compiler with OpenMP and "
            "reinstall mindone-share4v; without them float32 and float16 run on MindSpore's operators"
        )
    try:
        loaded = Library(LIBRARY)
    except OSError as error:
        raise KernelsMissingError(f"the CPU kernels cannot be loaded: {error}") from error
    wanted = os.environ.get(KIND_VARIABLE)
    if wanted:
        loaded.select(wanted)
    return loaded


@cache
def kernels_available() -> bool:
    """Say whether the kernels can be used; if not, log the reason once."""
    try:
        library()
    except KernelsMissingError as error:
        logger.warning("%s", error)
        return False
    return True
