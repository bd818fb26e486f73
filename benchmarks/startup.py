"""Measure `share4v caption` in a new process up to the first token: imports, mapping weights, computing.

    python benchmarks/startup.py --shape 7b-8l --dtype int4 --save

Writes a converted checkpoint with random weights, and captions one image with one token in new processes: first with
the file not in the page cache, then with the file in it. What is not spent in the kernels is start-up: Python, imports,
mapping, the image and the prompt. The import of MindSpore alone is measured in processes of its own. On a machine that
is never idle, the CPU times of `--shape tiny`, whose kernels take next to none, say what the start costs. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
from results import Store
from shapes import SHAPES

READ_AT_ONCE = 1 << 24  # bytes
IMPORT = "import time; start = time.perf_counter(); import mindspore; print(time.perf_counter() - start)"
# Runs the command and reports when it has answered, and how long the kernels worked until then.
CAPTION = """
import sys, time
from mindone_share4v.cli import main
status = main(["caption", *sys.argv[1:], "--max-new-tokens", "1"])
now = time.time()
from mindone.models.share4v.kernels.library import library
print("\\n", status, now, library().busy_seconds)
"""


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


def run(code: str, *arguments: str) -> tuple[str, float]:
    """Run code in a new process, and return the last line that it prints, and the process's CPU time in seconds."""
    before = cpu_of_children()
    # MindSpore sets OMP_NUM_THREADS=1 in the C environment, which children inherit; os.environ has the old value.
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1], cpu_of_children() - before


def cpu_of_children() -> float:
    """Return the CPU time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(image: Path, model: Path) -> dict[str, float]:
    """Return the seconds from the start of a new process to its first token, and those of them in the kernels."""
    start = time.time()
    line, cpu = run(CAPTION, str(image), "--model", str(model))
    status, end, busy = line.split()
    if int(status):
        raise SystemExit(f"share4v caption ended with status {status}")
    total = float(end) - start
    return {
        "to the first token": total,
        "in the kernels": float(busy),
        "start-up": total - float(busy),
        "CPU time": cpu,
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    """Parse the command line, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b-8l")
    parser.add_argument("--dtype", default="int4")
    parser.add_argument("--model", type=Path, help="a checkpoint that random_checkpoint.py wrote (default: written)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--allow-busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--save", action="store_true", help="store the results in benchmarks/results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or Path(folder) / "model"
        if not model.exists():
            from random_checkpoint import write_checkpoint

            write_checkpoint(arguments.shape, model, arguments.dtype)
        from PIL import Image

        image = Path(folder) / "image.png"
        Image.effect_noise((336, 336), 80).save(image)
        machine.require_idle(arguments.allow_busy)
        drop_from_page_cache(model)
        read = read_through(model)
        drop_from_page_cache(model)
        disk = measure(image, model)
        rounds = [measure(image, model) for _ in range(arguments.rounds)]
    imports = [(float(line), cpu) for line, cpu in (run(IMPORT) for _ in range(arguments.rounds))]
    mindspore, mindspore_cpu = (statistics.median(values) for values in zip(*imports, strict=True))
    seconds = medians(rounds)
    seconds |= {"import of MindSpore alone": mindspore, "start-up without it": seconds["start-up"] - mindspore}
    seconds["CPU time of MindSpore's import"] = mindspore_cpu
    result = {"seconds": seconds, "from_disk": disk, "reading_the_files_alone": read}
    about = {"shape": arguments.shape, "dtype": arguments.dtype}
    for name, value in seconds.items():
        print(f"{name:28} {value:.2f} s")
    if arguments.save:
        Store.of_this_machine().put("startup", about, result)
    print(json.dumps({**about, **result, "machine": machine.describe()}))


if __name__ == "__main__":
    main()
