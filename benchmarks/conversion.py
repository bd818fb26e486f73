"""What `share4v convert --dtype int4` costs on weights of a named shape that are random: time, CPU time, peak memory.

    python benchmarks/conversion.py --shape 13b
    python benchmarks/conversion.py --shape 7b-2l --whole FOLDER

The first rounds one layer in this process, on two calibration sequences, and extrapolates: a part that does not depend
on the sequences (GPTQ) and one that grows with them (the rounded layer, the second moments). CPU seconds of all threads
are reported, because they hold on a busy machine too; N idle cores take about 1/N of them.

The second writes a complete checkpoint of few layers into FOLDER (gigabytes), converts it with the command, and loads
the result. Then it converts again, kills the command with SIGKILL in the middle of the last layer, resumes it, and
compares the bytes of the two results. Time and memory are those of the command's processes.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from shapes import SHAPES

from mindone.models.share4v import Share4VConfig, TextConfig
from mindone.models.share4v.calibration import PICTURES, SEQUENCE, TOKENS
from mindone.models.share4v.checkpoint.packed import write_vectors
from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.kernels.packing import BlockWriter
from mindone.models.share4v.language.weights import language_plans, language_shapes
from mindone.models.share4v.rounding.gptq_layers import LayerRounder
from mindone.models.share4v.rounding.rotation import RotatedWeights, Rotation

PROMPT = 50  # tokens around a picture
PATTERN = 1_000_003  # random values that are repeated; a prime, so that no two rows of a matrix are equal
LOAD = """
import resource, sys, time
from mindone.models.share4v import Share4V
start = time.perf_counter()
Share4V.from_pretrained(sys.argv[1])
print(f"{time.perf_counter() - start:.1f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}")
"""


class TimedSequences(list[np.ndarray]):
    """Two sequences that measure how long the first one takes, over all passes: each pass asks for 0, then for 1.

    Attributes:
        seconds: CPU time of all threads between the two.
    """

    seconds = 0.0

    def __getitem__(self, index: Any, /) -> Any:
        self.seconds += (1 if index else -1) * time.process_time()
        return super().__getitem__(index)


def cpu_seconds(config: Share4VConfig) -> tuple[float, float]:
    """Return the CPU seconds, of all threads, of rounding the first layer: those of each sequence, and all others."""
    text, generator = config.text_config, np.random.default_rng(0)
    pattern = (generator.standard_normal(PATTERN, np.float32) * 0.02).astype(np.float16)
    shapes = language_shapes(text)

    def read(name: str) -> np.ndarray:
        shape = shapes[name]
        return np.ones(shape, np.float16) if len(shape) == 1 else np.resize(pattern, shape)

    plan = next(plan for plan in language_plans(config, "int4") if plan.spec.heads)
    weights = RotatedWeights(read, text, Rotation.random(text.hidden_size))
    inputs = TimedSequences(generator.standard_normal((SEQUENCE, text.hidden_size), np.float32) for _ in range(2))
    start = time.process_time()
    writer = BlockWriter(plan.spec)
    write_vectors(writer, plan, weights.layer)
    LayerRounder(text, weights.layer, weights.rotation).block(plan, writer, inputs)
    return inputs.seconds, time.process_time() - start - 2 * inputs.seconds


def measure_layer(shape: str) -> None:
    """Measure one layer of a shape and print a line."""
    text = TextConfig(**asdict(SHAPES[shape].language))
    config = replace(Share4VConfig(), text_config=text, quantization="int4", quantization_layout="rotated")
    each, fixed = cpu_seconds(config)
    count = -(-TOKENS // SEQUENCE)
    layer = fixed + count * each
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pictures = PICTURES * (config.vision_config.num_patches + PROMPT) / SEQUENCE  # in sequences
    print(
        f"{shape}, {library().instruction_set}: {fixed:.0f} + {count} x {each:.1f} = {layer:.0f} CPU seconds for "
        f"a layer, {layer * text.num_hidden_layers / 3600:.1f} CPU hours for {text.num_hidden_layers}; with {PICTURES} "
        f"pictures {(layer + pictures * each) * text.num_hidden_layers / 3600:.1f}. Peak {peak:.2f} GiB"
    )


@dataclass
class Run:
    """A run of the command.

    Attributes:
        seconds: until it ended.
        cpu_seconds: of all its threads.
        peak: memory, in GiB.
        layers: the seconds after which each layer was finished; the first entry is when the first one began.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak: float = 0.0
    layers: list[float] = field(default_factory=list)


def finished_layers(out: Path) -> int:
    """Return how many layers of an unfinished conversion are on disk; -1 if it has not begun to round."""
    numbers = [int(path.name.rpartition("-")[2]) for path in out.glob(".writing-int4-*/sequences-*")]
    return max(numbers, default=-1)


def convert(source: Path, out: Path, is_time_to_kill: Callable[[Run, float], bool] = lambda run, now: False) -> Run:
    """Convert in a process of its own, which is killed when `is_time_to_kill` says so."""
    command = [sys.executable, "-m", "mindone_share4v", "convert", str(source), "--out", str(out), "--dtype", "int4"]
    run, begin = Run(), time.perf_counter()
    process = subprocess.Popen(command)
    while True:
        pid, _, usage = os.wait4(process.pid, os.WNOHANG)
        now = time.perf_counter() - begin
        if pid:
            break
        run.layers += [now] * (finished_layers(out) + 1 - len(run.layers))
        if is_time_to_kill(run, now):
            os.kill(process.pid, signal.SIGKILL)  # Popen's own would first ask whether it has ended
        time.sleep(0.1)
    run.seconds, run.cpu_seconds, run.peak = now, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20
    return run


def measure_whole(shape: str, folder: Path) -> None:
    """Convert a checkpoint of a shape twice, once killed and resumed, and print what it cost."""
    from random_checkpoint import write_checkpoint

    source, whole, killed = folder / "source", folder / "whole", folder / "killed"
    count = SHAPES[shape].language.num_hidden_layers
    if not (source / "config.json").is_file():
        write_checkpoint(shape, source)
    for out in (whole, killed):
        shutil.rmtree(out, ignore_errors=True)
    run = convert(source, whole)
    layers = np.diff(run.layers)  # the last layer's end is not seen if the rest is over at once
    rest = run.seconds - layers.sum()
    print(
        f"{shape}, {library().instruction_set}, {library().threads} threads: {run.seconds:.0f} s, "
        f"{run.cpu_seconds:.0f} CPU seconds, peak {run.peak:.2f} GiB; layers of "
        f"{', '.join(f'{one:.0f}' for one in layers)} s, the rest {rest:.0f} s; 32 layers by extrapolation "
        f"{(rest + 32 * layers.mean()) / 60:.0f} minutes",
        flush=True,
    )
    size = (whole / "model.safetensors").stat().st_size / 1e9
    loaded = subprocess.run([sys.executable, "-c", LOAD, str(whole)], check=True, capture_output=True, text=True)
    seconds, peak = loaded.stdout.split()[-2:]
    print(f"loading {size:.2f} GB: {seconds} s, peak {peak} GiB", flush=True)

    def in_the_last_layer(run: Run, now: float) -> bool:
        return len(run.layers) == count and now > run.layers[-1] + layers.mean() / 2

    first = convert(source, killed, in_the_last_layer)
    print(f"killed after {first.seconds:.0f} s, with {finished_layers(killed)} of {count} layers finished", flush=True)
    second = convert(source, killed)
    is_equal = filecmp.cmp(whole / "model.safetensors", killed / "model.safetensors", shallow=False)
    print(f"resumed: {second.seconds:.0f} s; the bytes are {'equal' if is_equal else 'DIFFERENT'}")


def main() -> None:
    """Measure one layer or a complete conversion of a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    parser.add_argument("--whole", metavar="FOLDER", type=Path, help="convert a complete checkpoint, written there")
    arguments = parser.parse_args()
    if arguments.whole is None:
        measure_layer(arguments.shape)
    else:
        measure_whole(arguments.shape, arguments.whole)


if __name__ == "__main__":
    main()
