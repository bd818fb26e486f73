"""Measure a new process from its start to the first token: imports, reading weights, compiling graphs, one image.

    python benchmarks/startup.py --shape 7b-8l --dtype int4

Writes a model with random weights in the format of `share4v convert`, and loads it in new processes: first with
the file not in the page cache, then with the file in it. The second image of each process shows which costs occur only
once. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
from shapes import SHAPES

READ_AT_ONCE = 1 << 24  # bytes


def drop_from_page_cache(directory: Path) -> None:
    """Remove the files of a directory from the page cache, so that the next reader reads from disk."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(directory: Path) -> float:
    """Read every file of a directory once, and return the seconds."""
    start = time.perf_counter()
    for path in directory.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(READ_AT_ONCE):
                pass
    return time.perf_counter() - start


def write_model(shape: str, dtype: str, directory: Path) -> None:
    """Write a model with random weights."""
    from random_model import random_model

    random_model(shape, dtype).save_pretrained(directory)


def first_tokens(directory: Path) -> None:
    """Child process: load the model and generate two tokens for each of two images; print the seconds of each step."""
    times, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        times[name] = now - start
        start = now

    import numpy as np

    from mindone.models.share4v import Share4V
    from mindone.models.share4v.kernels.library import library

    library()
    lap("imports")
    model = Share4V.from_pretrained(directory)
    lap("from_pretrained")
    size, ids = model.config.vision_config.image_size, np.arange(3, 53)[None]
    ids[0, 40] = model.config.image_token_id
    for name in ("first_picture", "second_picture"):
        pixels = np.random.default_rng(len(name)).standard_normal((1, 3, size, size)).astype(np.float32)
        start = time.perf_counter()
        model.generate(ids, pixels, max_new_tokens=2, min_new_tokens=2)
        lap(name)
    print(json.dumps(times))


def measure(directory: Path) -> dict[str, float]:
    """Return the seconds of every step of a new process; `process` is the total."""
    start, command = time.perf_counter(), [sys.executable, __file__, "--read", str(directory)]
    # MindSpore sets OMP_NUM_THREADS=1 in the C environment, which children inherit; os.environ has the old value.
    environment = dict(os.environ)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "process": time.perf_counter() - start}


def main() -> None:
    """Parse the command line, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b-8l")
    parser.add_argument("--dtype", default="int4")
    parser.add_argument(
        "--directory", type=Path, help="where to write the model (default: the system's temporary directory)"
    )
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        return first_tokens(arguments.read)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        model = Path(folder) / "model"
        write_model(arguments.shape, arguments.dtype, model)
        drop_from_page_cache(model)
        result: dict[str, object] = {"shape": arguments.shape, "dtype": arguments.dtype}
        result["bytes"] = sum(path.stat().st_size for path in model.iterdir())
        result["reading_alone"] = read_through(model)
        drop_from_page_cache(model)
        for name in ("from_disk", "from_page_cache"):
            times = result[name] = measure(model)
            shown = ", ".join(f"{key} {value:.2f} s" for key, value in times.items())
            print(f"{name:15} {shown}", flush=True)
        cached = result["from_page_cache"]
        result["paid_once"] = cached["first_picture"] - cached["second_picture"]  # compiling graphs, mapping pages
    print(f"only reading the file {result['reading_alone']:.2f} s; compiling and mapping {result['paid_once']:.2f} s")
    print(json.dumps(result | {"machine": machine.describe()}))


if __name__ == "__main__":
    main()
