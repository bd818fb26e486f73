"""Runs the kernels' cases of one kind, each between two marks; `count.py` starts it and counts.

workload.py MARK_LIBRARY KIND [CASE ...]: prints one JSON line per case, with the case's multiply-adds.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable

import numpy as np

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec

SLOTS, HEADS, HEAD_SIZE = 512, 4, 128
DTYPES = ("float32", "float16", "bfloat16", "int8", "int8-256", "int4", "int4-256")
CACHE_DTYPES = ("float32", "float16", "int8")
PREFILL = 120  # rows; a multiple of the rows of every kind's tile
Case = tuple[int, Callable[[], object]]  # multiply-adds, and what is measured


def product(dtype: str, rows: int, outputs: int = 1024, columns: int = 2048) -> Case:
    """A linear layer without norm, bias and activation, with one scale of inputs for as many as weights have."""
    rng = np.random.default_rng(1)
    writer = BlockWriter(
        BlockSpec((MatrixSpec(outputs, columns, dtype, False, 256 if dtype.endswith("-256") else 32),))
    )
    writer.matrix(0, rng.random((outputs, columns), np.float32) - np.float32(0.5))
    x, index = rng.random((rows, columns), np.float32), np.arange(rows, dtype=np.int32)
    out = np.empty((rows, outputs), np.float32)
    return rows * outputs * columns, lambda: library().call("share4v_linear", [x, index, writer.block], out)


def attention(dtype: str, rows: int) -> Case:
    """The last `rows` tokens of a sequence attend to all tokens before them."""
    rng = np.random.default_rng(2)
    cache = CacheMemory(1, 1, HEADS, HEAD_SIZE, SLOTS, dtype)
    slots = np.arange(SLOTS - rows, SLOTS, dtype=np.int32)
    places = np.stack([np.zeros_like(slots), slots, np.zeros_like(slots), slots + 1], 1)
    query = rng.random((rows, HEADS, HEAD_SIZE), np.float32)
    keys, values = rng.random((rows, HEADS * HEAD_SIZE), np.float32), rng.random((rows, HEADS * HEAD_SIZE), np.float32)
    multiplies = 2 * HEADS * HEAD_SIZE * int((slots + 1).sum())
    return multiplies, lambda: library().attention(cache.memory, 0, places, query, keys, values)


CASES: dict[str, Callable[[], Case]] = {
    **{f"decode {dtype}": lambda dtype=dtype: product(dtype, 1) for dtype in DTYPES},
    **{f"prefill {dtype}": lambda dtype=dtype: product(dtype, PREFILL) for dtype in DTYPES},
    # As large as the smallest matrix of a 7B, where quantizing the inputs and reordering the weights count less.
    "prefill int8-256, 4096 x 4096": lambda: product("int8-256", 240, 4096, 4096),
    **{f"decode attention {dtype}": lambda dtype=dtype: attention(dtype, 1) for dtype in CACHE_DTYPES},
    **{f"prefill attention {dtype}": lambda dtype=dtype: attention(dtype, 64) for dtype in CACHE_DTYPES},
}
# For a report that only shows that everything runs.
QUICK: dict[str, Callable[[], Case]] = {
    **{
        f"{rows} rows of {dtype}": lambda dtype=dtype, rows=rows: product(dtype, rows, 64, 256)
        for rows in (1, 40)
        for dtype in DTYPES
    },
    **{f"attention {dtype}": lambda dtype=dtype: attention(dtype, 1) for dtype in CACHE_DTYPES},
}


def main(mark_library: str, kind: str, *names: str) -> None:
    """Run the cases."""
    mark = ctypes.CDLL(mark_library).share4v_mark
    kernels = library()
    kernels.select(kind)
    kernels.threads = 1
    for name in names or CASES:
        multiplies, run = CASES[name]()
        run()  # allocates scratch memory
        mark()
        run()
        mark()
        print(json.dumps({"case": name, "multiplies": multiplies}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
