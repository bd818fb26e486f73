"""This package's worker of compare.py."""

from __future__ import annotations

import time
from typing import Any

from random_model import make_model
from workers.protocol import Options, Runner, serve

from mindone.models.share4v.kernels.library import library


def build(options: Options) -> tuple[Runner, dict[str, Any]]:
    """Return a runner for a Share4V with random weights, and facts about it."""
    start = time.perf_counter()
    dtype, _, layout = options.dtype.partition("-")
    runner = make_model(options.shape, dtype, options.threads, is_converted=layout == "converted")
    return runner, {
        "dtype": dtype,
        "load_seconds": time.perf_counter() - start,
        "instruction_set": library().instruction_set,
        # What a phase of the row needs at least: bytes of weights that are read, or operations of matrix products.
        "decode_bytes": runner.weight_bytes(),
        "prefill_operations_per_token": runner.matrix_operations(1),
        "encode_operations": runner.encode_operations(),
    }


if __name__ == "__main__":
    serve(build, packages=("mindspore", "mindone-share4v", "numpy"))
