"""This package's worker of compare.py."""

from __future__ import annotations

import time
from typing import Any

from random_model import make_model
from workers.protocol import Options, Runner, serve


def build(options: Options) -> tuple[Runner, dict[str, Any]]:
    """Return a runner for a Share4V with random weights, and facts about it."""
    start = time.perf_counter()
    runner = make_model(options.shape, options.dtype, options.threads)
    return runner, {"load_seconds": time.perf_counter() - start}


if __name__ == "__main__":
    serve(build, packages=("mindspore", "mindone-share4v", "numpy"))
