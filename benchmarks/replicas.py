"""Compare one process with N threads and N processes with one thread each on the same data set, in turn.

    python benchmarks/replicas.py --count 400
    python benchmarks/replicas.py --shape 7b-8l --dtype int4 --count 8 --max-new-tokens 64

Uses rendered scenes, and sharegpt4v-tiny converted to int8, or a named shape with random weights. The time of a run is
that of the call of `caption_dataset`, so it includes loading the model. The last line is one JSON object.
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
from typing import Any

import machine
from dataset import write_scenes
from results import Store
from shapes import SHAPES

TINY = "sharegpt4v-tiny int8"


def prepare(directory: Path, shape: str | None, dtype: str) -> Path:
    """Write the converted checkpoint, if it does not exist; return its directory."""
    model = directory / (f"{shape}-{dtype}" if shape else "tiny-int8")
    if not model.exists():
        from random_checkpoint import write_checkpoint

        from mindone.models.share4v import convert

        if shape:
            write_checkpoint(shape, model, dtype)
        else:
            convert("sharegpt4v-tiny", model, dtype="int8", progress=False)
    return model


def weights_kib(pid: int, file: Path) -> int:
    """Return the Pss in KiB that the mappings of a file have in a process and its children."""
    processes, total = [pid], 0
    for process in processes:
        try:
            for thread in Path(f"/proc/{process}/task").iterdir():
                processes += map(int, (thread / "children").read_text().split())
            lines = Path(f"/proc/{process}/smaps").read_text().splitlines()
        except OSError:
            continue
        is_file = False
        for line in lines:
            name, _, value = line.partition(":")
            if " " in name:
                is_file = line.endswith(f" {file}")
            elif is_file and name == "Pss":
                total += int(value.split()[0])
    return total


def caption(folder: Path, model: Path, arguments: argparse.Namespace) -> None:
    """Child process: caption the folder, and print the rate and the memory of the weights."""
    from mindone.pipelines.image_to_text import caption_dataset

    captions = memory = 0
    middle = arguments.count // 2

    def on_record(record: Any) -> None:
        nonlocal captions, memory
        if record.error is not None:
            raise SystemExit(record.error)
        captions += 1
        if captions == middle:
            memory = max(weights_kib(os.getpid(), path) for path in model.glob("*.safetensors"))

    start = time.perf_counter()
    caption_dataset(
        folder,
        model=model,
        out=folder.with_name(f"captions-{arguments.replicas}.jsonl"),
        replicas=arguments.replicas,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        min_new_tokens=arguments.max_new_tokens if arguments.shape else None,
        restart=True,
        existing="overwrite",
        on_record=on_record,
    )
    seconds = time.perf_counter() - start
    print(json.dumps({"rate": captions / seconds, "seconds": seconds, "weights_mib": memory / 1024}))


def main() -> None:
    """Parse the command line, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape (default: sharegpt4v-tiny)")
    parser.add_argument("--dtype", choices=("int4", "int8"), default="int4", help="of a shape")
    parser.add_argument("--count", type=int, default=400, help="number of scenes")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="where to store the model (default: a temporary folder)")
    parser.add_argument("--prepare", action="store_true", help="only write the model")
    parser.add_argument("--allow-busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--save", action="store_true", help="store the results in benchmarks/results")
    parser.add_argument("--replicas", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = (arguments.directory or Path(temporary)).resolve()
        model = prepare(directory, arguments.shape, arguments.dtype)
        if arguments.replicas:
            return caption(arguments.folder, model, arguments)
        if arguments.prepare:
            return None
        folder = Path(temporary) / "scenes"
        write_scenes(folder, arguments.count)
        machine.require_idle(arguments.allow_busy)
        cores = len(os.sched_getaffinity(0))
        rates: dict[str, list[float]] = {}
        memory: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for replicas in (1, cores):
                name = f"{replicas} x {cores // replicas}"
                own = [*sys.argv[1:], "--directory", str(directory), "--folder", str(folder)]
                command = [sys.executable, __file__, *own, "--replicas", str(replicas)]
                done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                rates.setdefault(name, []).append(found["rate"])
                memory[name] = found["weights_mib"]
                print(f"{name}: {found}", flush=True)
    about = {"model": f"{arguments.shape} {arguments.dtype}" if arguments.shape else TINY, "count": arguments.count}
    figures = {"images_per_second": rates, "weights_mib": memory}
    if arguments.save:
        Store.of_this_machine().put("replicas", about, figures)
    print(json.dumps({**about, **figures, "machine": machine.describe()}))
    return None


if __name__ == "__main__":
    main()
