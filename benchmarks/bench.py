"""Measure every phase of a caption on random weights of a named shape, and relate it to the limits of the machine.

    python benchmarks/bench.py --shape 7b-8l --dtype int4

No checkpoint is needed. Prints a line for each phase when it is done; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import machine
from limits import limits
from random_model import Runner, make_model
from roofline import multiplied_as
from shapes import SHAPES

from mindone.models.share4v.kernels.cache_memory import KV_CACHE_DTYPES
from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.quantization import KERNEL_DTYPES, QUANTIZED


def resident_bytes() -> int:
    """Return the memory that the process uses now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    """Return the largest amount of memory that the process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(work: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Return the seconds of the first call, which includes compilation, and the median of `rounds` later calls."""
    first = work()
    return first, statistics.median(work() for _ in range(rounds))


def measure(runner: Runner, arguments: argparse.Namespace, peak: dict[str, float]) -> dict[str, dict[str, float]]:
    """Measure the phases, and the share of the machine's limits that each reaches."""
    context = min(arguments.tokens, runner.text.max_position_embeddings // 2)
    rounds = arguments.rounds
    result: dict[str, dict[str, float]] = {}

    def report(name: str, first: float, seconds: float, **facts: float) -> None:
        result[name] = {"seconds": seconds, "first_seconds": first, **facts}
        shown = ", ".join(f"{key} {value:.3g}" for key, value in result[name].items())
        print(f"{name:13} {shown}", flush=True)

    report("encode", *timed(runner.encode, rounds))
    if arguments.images > 1:
        first, seconds = timed(lambda: runner.encode(arguments.images), rounds)
        singly = arguments.images * result["encode"]["seconds"] / seconds
        report(f"encode {arguments.images}", first, seconds, times_one=singly)
    first, seconds = timed(lambda: runner.prefill(context), rounds)
    rate = runner.matrix_operations(context) / seconds
    kind = multiplied_as(runner.model.dtype, peak)
    report(
        "prefill", first, seconds, tokens_per_second=context / seconds, **{f"share_of_{kind}_peak": rate / peak[kind]}
    )
    first = runner.decode(1, context)
    busy = library().busy_seconds
    steps = [runner.decode(8, context) for _ in range(rounds)]
    outside = 1 - (library().busy_seconds - busy) / (8 * sum(steps))
    seconds = statistics.median(steps)
    read = runner.weight_bytes() / seconds
    share = read / peak["memory"]
    report(
        "decode", first, seconds, tokens_per_second=1 / seconds, share_of_bandwidth=share, share_outside_kernels=outside
    )
    if arguments.batch > 1:
        runner.prefill(context, arguments.batch)
        work = lambda: runner.decode(4, context, arguments.batch)  # noqa: E731
        first, step = timed(work, rounds)
        facts = {"tokens_per_second": arguments.batch / step, "times_one": arguments.batch * seconds / step}
        report(f"batch of {arguments.batch}", first, step, **facts)
    return result


def main() -> None:
    """Parse the command line, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b-8l")
    parser.add_argument("--dtype", choices=KERNEL_DTYPES, default="int4")
    parser.add_argument("--converted", action="store_true", help="integers as `share4v convert` writes them")
    parser.add_argument("--kv-cache-dtype", choices=KV_CACHE_DTYPES)
    parser.add_argument("--threads", type=int, default=0, help="number of threads (default: all CPUs)")
    parser.add_argument("--tokens", type=int, default=512, help="length of the prompt")
    parser.add_argument("--batch", type=int, default=8, help="batch size; 1 skips the batch phase")
    parser.add_argument("--images", type=int, default=1, help="also encode so many images at once")
    parser.add_argument("--caption", type=int, default=0, help="also measure a complete caption of this many tokens")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    peak = limits()  # measured first, so that its memory is freed before that of the model is measured
    before = resident_bytes()
    start = time.perf_counter()
    if arguments.converted and arguments.dtype not in QUANTIZED:
        parser.error(f"--converted is for {' and '.join(QUANTIZED)}")
    runner = make_model(
        arguments.shape, arguments.dtype, arguments.threads, arguments.kv_cache_dtype, arguments.converted
    )
    make_seconds = time.perf_counter() - start
    components = runner.model.packed_components()
    weights = sum(component.array(name).size for component in components for name in component.names)
    phases = measure(runner, arguments, peak)
    if arguments.caption:
        first, total = runner.caption(arguments.caption)
        phases["caption"] = {"seconds": total, "first_token_seconds": first, "tokens": arguments.caption}
        print(f"{'caption':13} first token {first:.3g} s, {arguments.caption} tokens {total:.3g} s", flush=True)
    cache = runner.cache_bytes()
    grown = peak_bytes() - before
    memory = {"weights": weights, "cache": cache, "before_weights": before, "peak": peak_bytes()}
    memory["peak_over_weights_and_cache"] = grown / (weights + cache)
    result = {
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "converted": arguments.converted,
        "kernels": library().instruction_set,
        "limits": peak,
    }
    result |= {"make_seconds": make_seconds, "phases": phases, "memory_bytes": memory, "machine": machine.describe()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
