"""Measure one layer of the 7B in a decoding step of one text and of several, by CPU time, on one thread.

    python benchmarks/batch_layer.py int4 int8 --texts 8 --slots 512

Weights are random, laid out as `share4v convert` writes them; every text attends to `--slots` tokens in its cache. The
last column is by calculation, for two threads that share the measured work and read weights and caches at
`--bandwidth`: how many times the tokens of one text a batch produces. A thread's CPU time hardly depends on what else
the machine does.
"""

from __future__ import annotations

import argparse
import os
import statistics

os.environ["OMP_NUM_THREADS"] = "1"  # before the library reads it

import numpy as np
from random_layer import Sizes, cpu_seconds, layer_call, types_of
from shapes import SHAPES

from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.kernels.packing import MatrixSpec

LANGUAGE = SHAPES["7b"].language
CACHE_BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0 + 4 / (LANGUAGE.hidden_size // LANGUAGE.num_attention_heads)}
THREADS = 2  # of the calculation


def main() -> None:
    """Parse the command line, and print a row of a Markdown table for each type of weights and cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtypes", nargs="+", help="types of the weights, such as int4")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--slots", type=int, default=512, help="tokens of each text (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bandwidth", type=float, default=31.0, help="of both threads, in GB/s (default: %(default)s)")
    arguments = parser.parse_args()
    library().threads = 1
    hidden, inner, heads = LANGUAGE.hidden_size, LANGUAGE.intermediate_size, LANGUAGE.num_attention_heads
    print(f"kernels: {library().instruction_set}\n")
    print(f"| weights | cache | one text, ms | {arguments.texts} texts, ms | by calculation |\n|---|---|---|---|---|")
    for dtype in arguments.dtypes:
        types = types_of(dtype)
        shapes = (3 * hidden, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner)
        weights = sum(MatrixSpec(*shape, types.layers).stored_bytes for shape in shapes)
        for cache in ("float16", "int8"):
            sizes = Sizes(hidden, inner, heads, True, types.layers, cache, types.input_group)
            times, seconds = [], []
            for texts in (1, arguments.texts):
                end = arguments.slots
                rows = np.array([(text, end - 1, 0, end) for text in range(texts)], np.int32)
                x = np.random.default_rng(1).standard_normal((texts, hidden)).astype(np.float32)
                call = layer_call(sizes, rows, x)
                work = statistics.median([cpu_seconds(call) for _ in range(arguments.rounds + 1)][1:])
                read = weights + texts * end * 2 * hidden * CACHE_BYTES[cache]
                times.append(work)
                seconds.append(max(work / THREADS, read / arguments.bandwidth / 1e9))
            ratio = arguments.texts * seconds[0] / seconds[1]
            print(f"| {dtype} | {cache} | {times[0] * 1e3:.2f} | {times[1] * 1e3:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
