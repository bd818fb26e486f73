"""Measure how many bytes MindSpore leaks for each operator call outside graphs.

    python benchmarks/operator_memory.py --calls 20000

This is why mindone/models/share4v/nn/host_ops.py uses NumPy on a CPU. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import machine
import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

WARM_UP = 2000  # calls before the measurement


class Doubled(nn.Cell):
    """The smallest graph."""

    def construct(self, x):  # type: ignore[no-untyped-def]
        """x [...] -> 2 x [...]."""
        return x + x


def contenders() -> dict[str, Callable[[], object]]:
    """Return the operations to measure, by name."""
    x, graph = Tensor(np.ones((4, 8), np.float32)), Doubled()
    index = Tensor(np.arange(4, dtype=np.int32))
    return {
        "concat": lambda: ops.concat((x, x), 0),
        "cast to float16": lambda: x.astype(ms.float16),
        "gather": lambda: ops.gather(x, index, 0),
        "graph": lambda: graph.compile_and_run(x),
        "graph of a gather's result": lambda: graph.compile_and_run(ops.gather(x, index, 0)),
        "graph of a stack's result": lambda: graph.compile_and_run(ops.stack((x, x))),
        "concat by NumPy": lambda: Tensor.from_numpy(np.concatenate((x.asnumpy(), x.asnumpy()))),
        "graph of NumPy's result": lambda: graph.compile_and_run(Tensor.from_numpy(x.asnumpy()[[0, 1, 2, 3]])),
    }


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Parse the command line, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20000)
    arguments = parser.parse_args()
    leaked = {}
    for name, call in contenders().items():
        for _ in range(WARM_UP):
            call()
        before = resident()
        for _ in range(arguments.calls):
            call()
        leaked[name] = round((resident() - before) / arguments.calls)
        print(f"{name}: {leaked[name]} bytes per call", flush=True)
    print(json.dumps({"mindspore": ms.__version__, "calls": arguments.calls, "kept": leaked, **machine.describe()}))


if __name__ == "__main__":
    main()
