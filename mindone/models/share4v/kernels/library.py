"""The shared library of the kernels: loads it, selects an instruction set, and calls it outside MindSpore graphs."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

import numpy as np

from ..cpu_cores import default_threads

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("libshare4v.so")
BUILD_ERROR = LIBRARY.with_name("build_error.txt")  # why the compiler failed at installation, written by setup.py
# Environment variable that selects the kernels' instruction set: avx2, avx512, avx512_bf16 or amx on x86-64, neon,
# dotprod or i8mm on aarch64, portable on any; by default the fastest that the CPU supports.
INSTRUCTION_SET_VARIABLE = "SHARE4V_KERNELS"


# The status that a kernel returns -> what it means, for messages; csrc/operators.cpp has the same numbers.
STATUS = {
    1: "the number of arguments is wrong",
    2: "a dtype is wrong",
    3: "the header of a block or cache is damaged, or does not describe the memory that was passed",
    4: "the shapes do not fit each other or the block",
    5: "a row, an index or an id is out of range",
    8: "an exception in C++ that is none of memory",
}
NOT_FINITE = 6
NO_MEMORY = 7
NO_THREADS = 9
PEAKS = ("float32", "int8", "bfloat16")  # csrc/kernels.h has the same order
INTERFACE = 8  # of the functions that are called here; as in csrc/operators.cpp


class KernelError(RuntimeError):
    """A kernel rejected its arguments."""


class ThreadsRefusedError(OSError):
    """The system does not start as many threads as a kernel uses; the message says what to do."""


class KernelsMissingError(OSError):
    """The kernels were not built or cannot be loaded; the message says why and what to do."""


class Library:
    """The functions of the shared library. Arrays must be C-contiguous; results are new arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        interface = getattr(self._library, "share4v_interface", None)
        if interface is None or interface() != INTERFACE:
            raise KernelsMissingError(f"{path} was built from other sources: reinstall mindone-share4v")
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
        """The number of threads of a kernel. Set 0 for the default, which `cpu_cores.default_threads` returns."""
        return int(self._library.share4v_threads())

    @threads.setter
    def threads(self, count: int) -> None:
        self._library.share4v_set_threads(count or default_threads())

    @property
    def busy_seconds(self) -> float:
        """Total time spent in operators since the library was loaded, in seconds."""
        return float(self._library.share4v_busy_seconds())

    def peak_operations(self, dtype: str = "float32") -> float:
        """Measure the peak operations per second of all threads, in multiply-adds of "float32", "int8" or "bfloat16".

        0 if the instruction set multiplies these as another type. Of "amx" it is the peak without the tiles.
        """
        return float(self._library.share4v_peak(PEAKS.index(dtype)))

    def read_bandwidth(self, data: np.ndarray) -> float:
        """Measure the bytes per second that all threads can read; `data` is uint8, hundreds of megabytes."""
        return float(self._library.share4v_bandwidth(_pointer(data), ctypes.c_int64(data.size)))

    def pack(
        self,
        block: np.ndarray,
        number: int,
        first: int,
        weight: np.ndarray,
        source_type: int,
        importance: np.ndarray | None = None,
    ) -> int:
        """Pack weight [R, K] into the rows first .. first + R - 1 of matrix `number` of a block, in place.

        `importance` float32 [K] is used by int4 super-blocks.

        Returns 1 if a value is not finite or too large for the matrix's type, else 0.

        Raises:
            KernelError: the block's header is damaged, or the weight does not fit the matrix.
        """
        if importance is not None:
            _check_floats("pack", [importance], [importance.shape == weight.shape[1:]])
        status = self._library.share4v_pack(
            *_memory(block),
            number,
            ctypes.c_int64(first),
            ctypes.c_int64(len(weight)),
            _pointer(weight),
            ctypes.c_int64(weight.size),
            source_type,
            None if importance is None else _pointer(importance),
        )
        if status == NOT_FINITE:
            return 1
        _check("pack", status, [block, weight])
        return 0

    def round_super_block(
        self, weight: np.ndarray, importance: np.ndarray, feedback: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Round weight float32 [R, K], at most 256 columns, to one int4 super-block per row.

        Args:
            weight: the weights; with `feedback` the targets, which are replaced by the rounded weights.
            importance: float32 [K], positive: how much the squared error of each column matters.
            feedback: float32 [K, K]: columns make up for the errors of the columns behind them
                (csrc/error_feedback.h). Only what is above the diagonal is read.

        Returns:
            codes uint8 [R, K], pairs int8 [R, ceil(K / 32), 2], and scales float16 [R]; see packing.RoundedRows.

        Raises:
            KernelError: a shape or dtype is wrong.
        """
        rows, columns = weight.shape
        given = [weight, importance] if feedback is None else [weight, importance, feedback]
        fits = [importance.shape == (columns,), feedback is None or feedback.shape == (columns, columns)]
        _check_floats("round_super_block", given, fits)
        codes, pairs = np.empty((rows, columns), np.uint8), np.empty((rows, -(-columns // 32), 2), np.int8)
        scales = np.empty(rows, np.float16)
        status = self._library.share4v_round(
            ctypes.c_int64(rows),
            ctypes.c_int64(columns),
            _pointer(weight),
            _pointer(importance),
            None if feedback is None else _pointer(feedback),
            *[_pointer(array) for array in (codes, pairs, scales)],
        )
        _check("round_super_block", status, given)
        return codes, pairs, scales

    def refine_super_block(
        self, gradient: np.ndarray, moment: np.ndarray, codes: np.ndarray, pairs: np.ndarray, scales: np.ndarray
    ) -> None:
        """Change the codes of one int4 super-block per row, in place, each to the best one while the others stay.

        Args:
            gradient: float32 [R, K], at most 256 columns: the rows' errors times the second moments of all inputs. It
                becomes the change of the errors.
            moment: float32 [K, K], the second moments of these columns.
            codes, pairs, scales: as `round_super_block` returns them.

        Raises:
            KernelError: a shape or dtype is wrong.
        """
        rows, columns = gradient.shape
        fits = (
            codes.shape == (rows, columns) and pairs.shape == (rows, -(-columns // 32), 2) and scales.shape == (rows,)
        )
        _check_floats("refine_super_block", [gradient, moment], [moment.shape == (columns, columns), fits])
        if (codes.dtype, pairs.dtype, scales.dtype) != (np.uint8, np.int8, np.float16):
            _check("refine_super_block", 2, [codes, pairs, scales])
        given = [gradient, moment, codes, pairs, scales]
        status = self._library.share4v_refine(
            ctypes.c_int64(rows), ctypes.c_int64(columns), *[_pointer(array) for array in given]
        )
        _check("refine_super_block", status, given)

    def rotate_rows(self, rotation: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Multiply rows x float32 [R, H] by a rotation, float32 [H + m * m]; csrc/format.h (Block) describes it.

        Raises:
            KernelError: a shape or dtype is wrong.
        """
        size = x.shape[-1]
        parts = size // (size & -size)
        _check_floats("rotate_rows", [x, rotation], [x.ndim == 2, rotation.shape == (size + parts * parts,)])
        out = np.empty_like(x)
        count = ctypes.c_int64(len(x))
        status = self._library.share4v_rotate_rows(
            _pointer(rotation), ctypes.c_int64(size), count, _pointer(x), _pointer(out)
        )
        _check("rotate_rows", status, [x, rotation])
        return out

    def unpack(self, block: np.ndarray, number: int, rows: int, columns: int) -> np.ndarray:
        """Return matrix `number` of a block as float32 [rows, columns].

        Raises:
            KernelError: the block's header is damaged, or the matrix has another shape.
        """
        out = np.empty((rows, columns), np.float32)
        status = self._library.share4v_unpack(*_memory(block), number, _pointer(out), ctypes.c_int64(out.size))
        _check("unpack", status, [block, out])
        return out

    def call(self, function: str, inputs: list[np.ndarray], output: np.ndarray) -> np.ndarray:
        """Call an operator as MindSpore would; it fills `output`, which is returned.

        Raises:
            KernelError: an array is not C-contiguous, or the operator rejected the arguments; nothing was computed.
        """
        arrays = [*inputs, output]
        count = len(arrays)
        params = (ctypes.c_void_p * count)(*[_pointer(array) for array in arrays])
        ndims = (ctypes.c_int * count)(*[array.ndim for array in arrays])
        sizes = [(ctypes.c_int64 * max(array.ndim, 1))(*array.shape) for array in arrays]
        shapes = (ctypes.c_void_p * count)(*[ctypes.addressof(size) for size in sizes])
        dtypes = (ctypes.c_char_p * count)(*[_dtype_name(array.dtype) for array in arrays])
        status = getattr(self._library, function)(count, params, ndims, shapes, dtypes, None, None)
        _check(function, status, arrays)
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
        """Write key and value [R, Hkv * D] into a cache, then attend: query [R, Hq, D], scaled -> [R, Hq, D].

        Raises:
            KernelError: shapes do not fit the cache or each other, or a row is outside the cache.
        """
        count, heads, size = query.shape
        if not count:
            return np.empty_like(query)
        kv_heads = key.size // max(count * size, 1)
        arrays = [rows, query, key, value]
        if rows.shape != (count, 4) or not key.size == value.size == count * kv_heads * size:
            _check("attention", 4, arrays)
        if rows.dtype != np.int32 or any(array.dtype != np.float32 for array in arrays[1:]):
            _check("attention", 2, arrays)
        out = np.empty_like(query)
        numbers = [ctypes.c_int64(number) for number in (count, heads, kv_heads, size)]
        pointers = [_pointer(array) for array in (query, key, value, out)]
        status = self._library.share4v_attention(
            *_memory(memory), ctypes.c_int64(layer), _pointer(rows), *numbers, *pointers
        )
        _check("attention", status, arrays)
        return out

    def norm(self, kind: int, eps: float, weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
        """Normalize the rows of x [R, H]; `kind` is a value of packing.NORMS."""
        vectors = [weight] if bias is None else [weight, bias]
        _check_floats("norm", [x, *vectors], [x.shape[-1:] == vector.shape for vector in vectors] + [x.ndim == 2])
        both = np.concatenate((weight, weight if bias is None else bias)).astype(np.float32)
        out = np.empty_like(x)
        size, count = ctypes.c_int64(x.shape[1]), ctypes.c_int64(len(x))
        status = self._library.share4v_norm(
            kind, ctypes.c_float(eps), size, _pointer(both), bias is not None, count, _pointer(x), _pointer(out)
        )
        _check("norm", status, [x, *vectors])
        return out

    def rotary(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """Apply rotary embedding to heads x [R, D]; cos and sin are [R, D]."""
        _check_floats("rotary", [x, cos, sin], [x.ndim == 2, cos.shape == sin.shape == x.shape])
        out = x.copy()
        count, size = map(ctypes.c_int64, x.shape)
        status = self._library.share4v_rotary(count, size, _pointer(cos), _pointer(sin), _pointer(out))
        _check("rotary", status, [x])
        return out

    def activation(self, kind: int, x: np.ndarray, up: np.ndarray | None = None) -> np.ndarray:
        """Apply an activation to x; `kind` is a value of packing.ACTIVATIONS, and gated SiLU multiplies by `up`."""
        _check_floats("activation", [x, x if up is None else up], [up is None or up.shape == x.shape])
        out = x.copy()
        second = _pointer(out if up is None else up)
        status = self._library.share4v_activation(kind, ctypes.c_int64(x.size), _pointer(out), second)
        _check("activation", status, [x])
        return out


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Return the address of an array; the kernels do not know strides, and read it from its start."""
    if not array.flags.c_contiguous:
        raise KernelError(f"an array of shape {array.shape} has strides {array.strides}: the kernels need C order")
    return ctypes.c_void_p(array.ctypes.data)


@cache
def _dtype_name(dtype: np.dtype) -> bytes:
    return dtype.name.encode()  # NumPy makes the name anew whenever it is asked for, and a layer has seven arrays


def _memory(data: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    """Return the address and the size in bytes of a block or cache."""
    return _pointer(data), ctypes.c_int64(data.nbytes)


def _check(function: str, status: int, arrays: list[np.ndarray]) -> None:
    if status:
        shapes = ", ".join(f"{array.dtype.name}{list(array.shape)}" for array in arrays)
        if status == NO_THREADS:
            raise ThreadsRefusedError(
                f"the system refused to start the {library().threads} threads that the CPU kernels use: raise its "
                "limit of threads (`ulimit -u`, or pids.max of a container) or of memory (`ulimit -v`), or set "
                "OMP_NUM_THREADS to a smaller number"
            )
        if status == NO_MEMORY:
            raise MemoryError(
                f"{function} got no memory for its intermediate results; its arrays are {shapes}: use smaller batches "
                "or a shorter context, or close other programs"
            )
        raise KernelError(f"{function} rejected its arguments: {STATUS.get(status, f'status {status}')}; got {shapes}")


def _check_floats(function: str, arrays: list[np.ndarray], conditions: list[bool]) -> None:
    """Check what the parts of a layer are given, which only the tests call: float32 arrays of shapes that fit."""
    if any(array.dtype != np.float32 for array in arrays):
        _check(function, 2, arrays)
    if not all(conditions):
        _check(function, 4, arrays)


def _build_error() -> str:
    """Return why the library does not exist."""
    try:
        reason = BUILD_ERROR.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{LIBRARY.name} is missing"
    return " ".join(reason.split())[:500] or f"{LIBRARY.name} is missing"


@cache
def library() -> Library:
    """Return the kernels; the library is loaded on the first call.

    Raises:
        KernelsMissingError: the kernels were not built, or cannot be loaded.
        ValueError: SHARE4V_KERNELS names an instruction set that this machine does not support.
    """
    if not LIBRARY.is_file():
        raise KernelsMissingError(
            f"the CPU kernels were not built ({_build_error()}): install a C++ compiler with OpenMP and "
            "reinstall mindone-share4v; without the kernels only float32 and float16 work, on MindSpore's operators"
        )
    try:
        loaded = Library(LIBRARY)
    except OSError as error:
        raise KernelsMissingError(f"the CPU kernels cannot be loaded: {error}") from error
    loaded.threads = 0
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
