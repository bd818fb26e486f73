"""Compare the speed of this package with llama.cpp and PyTorch on the same work, alternating within one run.

    python benchmarks/compare.py --shape 7b-8l --rows decode,prefill --ours int4 --peers llama.cpp:Q4_0

At most two processes run at once, one of each side, and only one of them works at a time. Prints a Markdown table line
by line; the last line is one JSON object with the machine, the versions and all measurements. `--save` stores them in
benchmarks/results/, from which `python benchmarks/tables.py` writes the tables of docs/performance.md. On a machine
where other programs run it refuses to measure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import machine
from results import Store
from roofline import roofline
from shapes import SHAPES
from workers.process import Contender, Worker, WorkerError

REST_SECONDS = 0.3  # pause before every measurement, until the other side's threads have stopped spinning
IDLE_LIMIT = 0.05  # share of a core that the waiting worker may use


@dataclass(frozen=True)
class Row:
    """One kind of work: how to compute a speed (higher is better) from a worker's reply."""

    unit: str
    speed: Callable[[dict[str, float]], float]


BATCH = 8
ROWS = {
    "decode": Row("tokens/s", lambda reply: 1 / reply["seconds_per_token"]),
    "prefill": Row("tokens/s", lambda reply: reply["tokens_per_second"]),
    "encode": Row("images/s", lambda reply: 1 / reply["seconds"]),
    "batch": Row("tokens/s", lambda reply: BATCH / reply["seconds_per_step"]),
}


def requests(shape: str) -> dict[str, dict[str, Any]]:
    """Return the request of each row, with a context of 512 tokens, or half of a smaller model's maximum."""
    context = min(512, SHAPES[shape].language.max_position_embeddings // 2)
    return {
        "decode": {"do": "decode", "tokens": 16, "context": context},
        "prefill": {"do": "prefill", "tokens": context},
        "encode": {"do": "encode"},
        "batch": {"do": "batch_decode", "batch": BATCH, "tokens": 8, "context": context},
    }


WORKERS = {
    "share4v": "workers.share4v_worker",
    "torch": "workers.torch_worker",
    "llama.cpp": "workers.llama_cpp_worker",
}

# "int4" is what loading a float checkpoint makes, "int4-converted" what `share4v convert` writes, which is faster: 256
# inputs share a scale, and not 32. Of int8 both are the same.
# The rows that each library supports. Decoding is bound by memory bandwidth, so it is only compared between weights of
# the same width; SAME_WIDTH has the llama.cpp type for each of our dtypes. Prefill is bound by arithmetic, so it is
# compared for every pair of types.
LIBRARY_ROWS = {"torch": frozenset(ROWS), "llama.cpp": frozenset(ROWS) - {"encode"}}
SAME_WIDTH_ROWS = frozenset({"decode", "batch"})
SAME_WIDTH = {
    "int4-converted": "Q4_0",
    "int4": "Q4_0",
    "int8": "Q8_0",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
}


@dataclass
class Result:
    """The speeds of one row for one of our dtypes and one peer, for each round."""

    row: str
    ours: Contender
    peer: Contender
    our_speeds: list[float] = field(default_factory=list)
    peer_speeds: list[float] = field(default_factory=list)
    variant: str = ""  # of the peer, if it has several: the fastest
    other_cores: float = 0.0  # that other programs used meanwhile

    def summary(self) -> dict[str, Any]:
        """Return the medians, their ratio (above 1: ours is faster), and the smallest and largest ratio of a round."""
        ratios = [ours / peer for ours, peer in zip(self.our_speeds, self.peer_speeds, strict=True)]
        medians = statistics.median(self.our_speeds), statistics.median(self.peer_speeds)
        return {
            "row": self.row, "unit": ROWS[self.row].unit,
            "ours": str(self.ours), "peer": str(self.peer), "our_median": medians[0], "peer_median": medians[1],
            "ratio": medians[0] / medians[1], "ratio_min": min(ratios), "ratio_max": max(ratios),
            "our_speeds": self.our_speeds, "peer_speeds": self.peer_speeds,
            "peer_variant": self.variant, "other_cores": self.other_cores,
        }  # fmt: skip

    def line(self) -> str:
        """Return the result as a line of the Markdown table."""
        s = self.summary()
        return (
            f"| {s['row']} | {s['ours']} | {s['peer']} | {s['our_median']:.4g} | {s['peer_median']:.4g} | {s['unit']} "
            f"| **{s['ratio']:.2f}** | {s['ratio_min']:.2f} to {s['ratio_max']:.2f} |"
        )


def rows_of(ours: Contender, peer: Contender, wanted: list[str]) -> list[str]:
    """Return those of the wanted rows on which this pair can be compared."""
    rows = [row for row in wanted if row in LIBRARY_ROWS[peer.library]]
    if peer.library == "llama.cpp" and SAME_WIDTH[ours.dtype] != peer.dtype:
        rows = [row for row in rows if row not in SAME_WIDTH_ROWS]
    return rows


def compare(row: str, request: dict[str, Any], ours: Worker, peer: Worker, rounds: int) -> tuple[Result, float]:
    """Measure one row, ours and the peer in turn; also return the largest share of a core that a waiting side used.

    Of a peer that decodes batches in several ways, the fastest counts.
    """
    result = Result(row, ours.contender, peer.contender)
    variants = peer.facts.get("variants", ("",)) if row == "batch" else ("",)
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    turns = [(ours, peer, request, result.our_speeds)]
    turns += [(peer, ours, {**request, **({"variant": name} if name else {})}, speeds[name]) for name in variants]
    busiest = others = total = 0.0
    for number in range(-1, rounds):  # round -1 is a warm-up: page faults, compilation, caches
        for worker, waiting, asked, found in turns:
            time.sleep(REST_SECONDS)
            before, all_before, start = waiting.cpu_seconds(), _unexplained(ours, peer), time.perf_counter()
            speed = ROWS[row].speed(worker.ask(asked))
            after, seconds = waiting.cpu_seconds(), time.perf_counter() - start
            if number >= 0:
                found.append(speed)
                others, total = others + _unexplained(ours, peer) - all_before, total + seconds
                if before is not None and after is not None and seconds > 0.1:
                    busiest = max(busiest, (after - before) / seconds)
    result.variant = max(variants, key=lambda name: statistics.median(speeds[name]))
    result.peer_speeds = speeds[result.variant]
    result.other_cores = round(max(0.0, others / total), 3)
    return result, busiest


def _unexplained(*workers: Worker) -> float:
    """Return the CPU time that neither these workers nor this process used; 0 if the system does not say."""
    used = [worker.cpu_seconds() for worker in workers]
    total = machine.cpu_seconds()
    if total is None or None in used:
        return 0.0
    return total - time.process_time() - sum(one for one in used if one is not None)


@dataclass
class Report:
    """The JSON object of the last line."""

    options: dict[str, Any]
    requests: dict[str, dict[str, Any]]
    machine: dict[str, object] = field(default_factory=machine.describe)
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    other_cores: float | None = None  # that other programs used before the measurement
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def note(self, kind: list[str], message: str) -> None:
        """Record a warning or a failure, and print it."""
        kind.append(message)
        print(message, file=sys.stderr, flush=True)


def run(options: argparse.Namespace, report: Report, directory: Path) -> Iterator[str]:
    """Measure every pair that can be compared, and yield the lines of a Markdown table."""
    yield "| | ours | peer | ours | peer | unit | ratio | rounds |"
    yield "|---|---|---|---|---|---|---|---|"
    pythons = {"share4v": sys.executable, "torch": options.torch_python, "llama.cpp": options.llama_python}

    def start(contender: Contender) -> Worker:
        worker = Worker(
            contender, WORKERS[contender.library], pythons[contender.library], options.shape, options.threads, directory
        )
        report.contenders[str(contender)] = worker.facts
        return worker

    for ours in options.ours:
        pairs = [(peer, rows) for peer in options.peers if (rows := rows_of(ours, peer, options.rows))]
        if not pairs:
            continue
        try:
            with start(ours) as our_worker:
                for peer, rows in pairs:
                    yield from _pair(our_worker, partial(start, peer), rows, options.rounds, report)
        except WorkerError as error:
            report.note(report.failures, str(error))


def _pair(ours: Worker, start: Callable[[], Worker], rows: list[str], rounds: int, report: Report) -> Iterator[str]:
    """Yield the lines of one pair; a failure is recorded, and the other rows are still measured."""
    limits = ours.ask({"do": "limits"})
    first = len(report.results)
    try:
        peer = start()
    except WorkerError as error:
        report.note(report.failures, str(error))
        return
    with peer:
        for row in rows:
            what = f"{row}, {ours.contender} and {peer.contender}"
            try:
                result, busiest = compare(row, report.requests[row], ours, peer, rounds)
            except WorkerError as error:
                report.note(report.failures, f"{what}: {error}")
                continue
            if busiest > IDLE_LIMIT:
                report.note(report.warnings, f"{what}: a waiting side used {busiest:.2f} cores")
            if result.other_cores > machine.BUSY_CORES:
                report.note(report.warnings, f"{what}: other programs used {result.other_cores:.2f} cores")
            report.results.append(result.summary())
            yield result.line()
    # The limits before and after: on a shared host one minute can have half of another's bandwidth.
    limits = {name: max(value, limits[name]) for name, value in ours.ask({"do": "limits"}).items()}
    for found in report.results[first:]:
        found["roofline"] = roofline(found["row"], ours.facts["dtype"], found["our_median"], BATCH, ours.facts, limits)


def save(options: argparse.Namespace, report: Report) -> None:
    """Store each result in place of an earlier one of the same row and pair."""
    store = Store.of_this_machine()
    versions = {name: facts.get("versions") for name, facts in report.contenders.items()}
    for result in report.results:
        about = {"shape": options.shape, "threads": options.threads}
        about |= {name: result[name] for name in ("row", "ours", "peer")}
        figures = {name: value for name, value in result.items() if name not in about}
        figures["versions"] = {name: versions.get(result[name]) for name in ("ours", "peer")}
        store.put("compare", about, figures)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b-8l")
    parser.add_argument("--rows", type=_choice(ROWS), default="decode,prefill,encode,batch")
    parser.add_argument("--ours", type=_choice(SAME_WIDTH), default="int8,int4-converted,int4,bfloat16,float16,float32")
    parser.add_argument(
        "--peers", type=_peers, default="llama.cpp:F16,llama.cpp:Q8_0,llama.cpp:Q4_0,torch:float32,torch:bfloat16"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to store weights (default: a temporary folder)")
    parser.add_argument("--allow-busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--save", action="store_true", help="store the results in benchmarks/results")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch and transformers")
    parser.add_argument("--llama-python", default=sys.executable, help="an interpreter with llama-cpp-python and gguf")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.threads < 1:
        parser.error(f"--rounds and --threads must be at least 1, not {options.rounds} and {options.threads}")
    options.ours = [Contender("share4v", dtype) for dtype in options.ours]
    return options


def _choice(known: dict[str, Any]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not one of {', '.join(known)}")
        return names

    return read


def _peers(text: str) -> list[Contender]:
    peers = []
    for name in text.split(","):
        library, _, dtype = name.partition(":")
        if library not in LIBRARY_ROWS or not dtype:
            raise argparse.ArgumentTypeError(f"{name!r} is not LIBRARY:TYPE with LIBRARY {' or '.join(LIBRARY_ROWS)}")
        peers.append(Contender(library, dtype))
    return peers


def main() -> int:
    """Run the comparison and return the exit status: 1 if anything failed."""
    options = parse()
    shown = {
        "shape": options.shape,
        "rows": options.rows,
        "ours": [str(contender) for contender in options.ours],
        "peers": [str(contender) for contender in options.peers],
        "threads": options.threads,
        "rounds": options.rounds,
    }
    report = Report(shown, requests(options.shape))
    report.other_cores = machine.require_idle(options.allow_busy)
    with tempfile.TemporaryDirectory() as temporary:
        directory = (options.directory or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        for line in run(options, report, directory):
            print(line, flush=True)
    if options.save:
        save(options, report)
    print(json.dumps(vars(report)))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
