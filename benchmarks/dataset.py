"""Compare `caption_dataset` with a loop over single captions, and measure its memory over many inputs.

    python benchmarks/dataset.py --count 400
    python benchmarks/dataset.py --count 10000 --loop 0

Uses rendered scenes and sharegpt4v-tiny; each contender runs in its own process, in turn. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

TINY = Path(__file__).parents[1] / "examples" / "sharegpt_4v" / "tiny"


def write_scenes(folder: Path, count: int) -> None:
    """Write `count` different scenes as PNG files, 1,000 per subfolder."""
    sys.path.insert(0, str(TINY))
    from scenes import render, sample_scene, scene_rng

    for number in range(count):
        subfolder = folder / f"{number // 1000:04d}"
        subfolder.mkdir(parents=True, exist_ok=True)
        rng = scene_rng(11, number)
        render(sample_scene(rng), rng).save(subfolder / f"{number:06d}.png")


def one_by_one(folder: Path, count: int) -> None:
    """Child process: caption with the loop that a user would write; prints seconds and tokens."""
    from mindone.pipelines import pipeline

    captioner = pipeline("image-to-text")
    paths = sorted(folder.rglob("*.png"))[:count]
    question = captioner.template().question
    captioner.answer([question], [[str(paths[0])]], {})  # warm-up: compiles the graphs
    start, tokens = time.perf_counter(), 0
    for path in paths:
        tokens += len(captioner.answer([question], [[str(path)]], {})[0].token_ids)
    print(json.dumps({"seconds": time.perf_counter() - start, "images": len(paths), "tokens": tokens}))


def as_a_data_set(folder: Path, batch_size: int, workers: int) -> None:
    """Child process: caption with `caption_dataset`; prints seconds, tokens and the resident memory over time."""
    from mindone.pipelines.image_to_text import caption_dataset

    times, memory, tokens = [], [], 0
    page = os.sysconf("SC_PAGE_SIZE")

    def on_record(record) -> None:
        nonlocal tokens
        times.append(time.perf_counter())
        tokens += sum(record.tokens)
        if len(times) % 200 == 1:
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)

    start = time.perf_counter()
    caption_dataset(
        folder,
        out=folder / "captions.jsonl",
        state=folder / ".state",
        batch_size=batch_size,
        workers=workers,
        on_record=on_record,
    )
    total = time.perf_counter() - start
    # "seconds" starts at the first caption, as the loop's time does.
    result = {"seconds": times[-1] - times[0], "whole_seconds": total, "images": len(times), "tokens": tokens}
    print(json.dumps({**result, "resident": memory}))


def run(*arguments: str) -> dict:
    """Run one contender in a new process and return what it prints."""
    # MindSpore sets OMP_NUM_THREADS=1 in the C environment, which children inherit; os.environ has the old value.
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Parse the command line, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="number of scenes")
    parser.add_argument("--loop", type=int, default=100, help="number of scenes for the loop; 0 skips it")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2, help="threads that read images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=("loop", "dataset"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender == "loop":
        return one_by_one(arguments.folder, arguments.loop)
    if arguments.contender == "dataset":
        return as_a_data_set(arguments.folder, arguments.batch_size, arguments.workers)
    ratios = []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), arguments.count)
        own = ["--folder", folder, "--loop", str(arguments.loop), "--batch-size", str(arguments.batch_size)]
        own += ["--workers", str(arguments.workers)]
        for _ in range(arguments.rounds if arguments.loop else 1):
            for path in (Path(folder) / "captions.jsonl", *Path(folder, ".state").glob("*")):
                path.unlink(missing_ok=True)
            data = run("--contender", "dataset", *own)
            rates = {"dataset": data["images"] / data["seconds"]}
            if arguments.loop:
                loop = run("--contender", "loop", *own)
                rates["loop"] = loop["images"] / loop["seconds"]
                ratios.append(rates["dataset"] / rates["loop"])
            rows.append({**rates, "tokens_per_second": data["tokens"] / data["seconds"], "resident": data["resident"]})
            shown = ", ".join(f"{name} {rate:.1f} images/s" for name, rate in rates.items())
            print(
                f"{shown}; memory {min(data['resident']) / 2**20:.0f} to {max(data['resident']) / 2**20:.0f} MiB",
                flush=True,
            )
    result = {
        "count": arguments.count,
        "batch_size": arguments.batch_size,
        "rounds": rows,
        "machine": machine.describe(),
    }
    if ratios:
        result["ratio"] = statistics.median(ratios)
        print(f"data set to loop: {result['ratio']:.2f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
