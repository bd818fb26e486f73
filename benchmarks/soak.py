"""A long test of crash safety: a job that is killed again and again must end like one that was never killed.

    python benchmarks/soak.py --count 20000 --kills 100

Uses rendered scenes, duplicates and broken files, sharegpt4v-tiny, and SIGKILL at random moments. The last line is one
JSON object. The exit status is 1 if the outputs differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dataset import write_scenes


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """Return the command line of the job."""
    job = [sys.executable, "-m", "mindone_share4v", "caption-dataset", str(folder), "--out", str(out)]
    return [*job, "--batch-size", "32", "--max-new-tokens", "64", *more]


def run_killed(arguments: list[str], kills: int, longest: float, rng: random.Random) -> int:
    """Start the job and kill it at a random moment, `kills` times; return how many kills hit a running job."""
    hits = 0
    for _ in range(kills):
        job = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            job.wait(rng.uniform(0.5, longest))
            break
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGKILL)
            job.wait()
            hits += 1
    return hits


def lines_of(path: Path) -> list[dict]:
    """Return the records without the field that differs between runs."""
    with path.open(encoding="utf-8") as file:
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in file]


def main() -> None:
    """Parse the command line, run and kill the job, and compare the outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=12.0, help="maximum number of seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        write_scenes(folder, arguments.count)
        for number in range(0, arguments.count, 97):  # add broken files and duplicates
            (folder / f"broken{number}.png").write_bytes(os.urandom(number % 4096))
            source = folder / f"{number // 1000:04d}" / f"{number:06d}.png"
            (folder / f"copy{number}.png").write_bytes(source.read_bytes())
        start = time.perf_counter()
        subprocess.run(command(folder, Path(temporary) / "whole.jsonl"), capture_output=True, check=False)
        unbroken = time.perf_counter() - start
        killed = command(folder, Path(temporary) / "killed.jsonl")
        hits = run_killed(killed, arguments.kills, arguments.longest, random.Random(arguments.seed))
        subprocess.run(killed, capture_output=True, check=False)
        whole, broken = lines_of(Path(temporary) / "whole.jsonl"), lines_of(Path(temporary) / "killed.jsonl")
    result = {"inputs": len(whole), "kills": hits, "equal": whole == broken, "unbroken_seconds": round(unbroken, 1)}
    print(json.dumps(result))
    sys.exit(not result["equal"])


if __name__ == "__main__":
    main()
