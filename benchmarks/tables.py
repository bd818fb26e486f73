"""Write the measured tables of docs/performance.md from the results of all machines in benchmarks/results/.

    python benchmarks/tables.py

Machines stand side by side, a column each; no figure combines two of them. `--check` writes nothing, and its exit
status is 1 if the page is outdated.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
from results import Store, stores

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- tables.py: begin -->", "<!-- tables.py: end -->"
ROWS = {"decode": "decode", "prefill": "prefill 512", "encode": "image", "batch": "batch of 8"}
DTYPES = ("int4-converted", "int4", "int8", "bfloat16", "float16", "float32")
LIMITS = {
    "memory": "GB/s read",
    "float32": "GFLOP/s (float32)",
    "int8": "GOP/s (int8)",
    "bfloat16": "GFLOP/s (bfloat16)",
}
SHAPE = "7b-8l"
Entry = dict[str, Any]


def page(text: str) -> str:
    """Return the page with new tables between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(stores())}\n{END}{after}"


def tables(machines: Sequence[Store]) -> str:
    """Return all tables as Markdown."""
    if not machines:
        return "No machine has stored results yet.\n"
    parts = [_machines(machines), _compare(machines), _roofline(machines)]
    parts += [_servers(machines), _replicas(machines), _startup(machines)]
    return "\n".join(part for part in parts if part)


def _name(store: Store) -> str:
    return machine.title(store.data["machine"])


def _machines(machines: Sequence[Store]) -> str:
    lines = ["### Machines", "", "| | instruction sets | memory | measured | commit |", "|---|---|---|---|---|"]
    for store in machines:
        about = store.data["machine"]
        entries = [one for section in store.data.values() if isinstance(section, list) for one in section]
        dates = sorted({one["date"] for one in entries})
        commits = sorted({one["commit"] for one in entries})
        sets = ", ".join(about["instruction_sets"])
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines.append(f"| {_name(store)} | {sets} | {about['memory_gib']} GiB | {when} | {', '.join(commits)} |")
    return "\n".join([*lines, ""])


def _side_by_side(
    title: str,
    explanation: str,
    heads: Sequence[str],
    machines: Sequence[Store],
    cells: Callable[[Store], Iterator[tuple[tuple[str, ...], str]]],
) -> str:
    """Return a table with a column for each machine; `cells` yields what a row is about, and its cell."""
    found = {_name(store): dict(cells(store)) for store in machines}
    found = {name: own for name, own in found.items() if own}
    if not found:
        return ""
    keys = sorted({key for own in found.values() for key in own}, key=_order)
    lines = [f"### {title}", "", explanation, ""]
    lines += [f"| {' | '.join((*heads, *found))} |", "|---" * (len(heads) + len(found)) + "|"]
    lines += [f"| {' | '.join((*key, *(own.get(key, '') for own in found.values())))} |" for key in keys]
    return "\n".join([*lines, ""])


def _order(key: tuple[str, ...]) -> tuple[Any, ...]:
    """Return where a row comes: by phase, then by our dtype."""
    phases = list(ROWS.values())
    phase = phases.index(key[0]) if key[0] in phases else len(phases)
    dtype = DTYPES.index(key[1]) if len(key) > 1 and key[1] in DTYPES else len(DTYPES)
    return phase, dtype, key


def _results(store: Store) -> list[Entry]:
    return [one for one in store.data.get("compare", ()) if one["about"]["shape"] == SHAPE]


def _label(contender: str) -> str:
    library, _, dtype = contender.partition(":")
    return dtype if library == "share4v" else f"{'PyTorch' if library == 'torch' else library} {dtype}"


def _compare(machines: Sequence[Store]) -> str:
    def cells(store: Store) -> Iterator[tuple[tuple[str, ...], str]]:
        for one in _results(store):
            about = one["about"]
            ours, peer = one["our_median"], one["peer_median"]
            rounds = f"{one['ratio_min']:.2f} to {one['ratio_max']:.2f}"
            key = ROWS[about["row"]], _label(about["ours"]), _label(about["peer"])
            yield key, f"{_number(ours)} / {_number(peer)} = **{ours / peer:.2f}** ({rounds})"

    return _side_by_side(
        "Compared with peers",
        "`python benchmarks/compare.py --shape 7b-8l --save`: ours / peer = ratio (its range over the rounds), in "
        "tokens or images per second. Of llama.cpp's ways to keep the KV caches of a batch (split, unified) the faster "
        "one counts; flash attention is on. int4 is what loading a float checkpoint makes, int4-converted what "
        "`share4v convert` writes.",
        ("", "ours", "peer"),
        machines,
        cells,
    )


def _roofline(machines: Sequence[Store]) -> str:
    def cells(store: Store) -> Iterator[tuple[tuple[str, ...], str]]:
        found: dict[tuple[str, ...], list[Entry]] = {}
        for one in _results(store):
            if one.get("roofline"):
                key = ROWS[one["about"]["row"]], _label(one["about"]["ours"])
                found.setdefault(key, []).append(one["roofline"])
        # Other programs can only lower what is measured of the arithmetic. Bandwidth belongs to its minute.
        peaks: dict[str, float] = {}
        for limit in (limit for limits in found.values() for limit in limits):
            peaks[limit["limit"]] = max(peaks.get(limit["limit"], 0.0), limit["peak"])
        for key, limits in found.items():
            middle = sorted(limits, key=lambda limit: limit["share"])[len(limits) // 2]
            peak = middle["peak"] if middle["limit"] == "memory" else peaks[middle["limit"]]
            share = middle["share"] * middle["peak"] / peak
            shown = f"{peak / 1e9:.0f} {LIMITS[middle['limit']]}"
            more = "" if share <= 1.05 else " (so other programs read meanwhile)"
            yield key, f"{share:.0%} of {shown}{more}, {middle['instruction_set']}"

    return _side_by_side(
        "Share of the machine's limits",
        "Bandwidth is measured in the same run, peaks are the largest of all runs, with the kernels' threads and "
        "instructions. Work is what the matrices need: bytes of weights for each decode step, multiply-adds for "
        "prefill and images; attention does not count.",
        ("", "ours"),
        machines,
        cells,
    )


def _servers(machines: Sequence[Store]) -> str:
    def cells(store: Store) -> Iterator[tuple[tuple[str, ...], str]]:
        for one in store.data.get("serve", ()):
            about = one["about"]
            for server in dict.fromkeys(entry["server"] for entry in one["rounds"]):
                own = [entry for entry in one["rounds"] if entry["server"] == server]
                name = about["ours"] if server == "ours" else f"{server} {about['peer'].upper()}"
                key = f"{about['clients']} client{'s' * (about['clients'] > 1)}", f"{about['ours']}: {name}"
                speed = statistics.median(entry["tokens_per_second"] for entry in own)
                first = [value for entry in own for value in entry["samples"]["first_token"]]
                between = [value for entry in own for value in entry["samples"]["between"]]
                times = f"{_spread(first, 1, 's')}; {_spread(between, 1000, 'ms')}; {len(first)} requests"
                yield key, f"**{speed:.1f}** tokens/s; {times}"

    return _side_by_side(
        "Servers",
        "`python benchmarks/serve_peers.py`: `share4v serve` and llama.cpp's server in turn, an image of its own and "
        "64 new tokens for every request. Tokens per second (median of the rounds); time to first token, p50 / p95 / "
        "p99; time between tokens, p50 / p95 / p99.",
        ("", "server"),
        machines,
        cells,
    )


def _spread(values: Sequence[float], scale: float, unit: str) -> str:
    ordered = sorted(values)
    shown = (ordered[min(len(ordered) - 1, int(len(ordered) * part))] * scale for part in (0.5, 0.95, 0.99))
    return f"{' / '.join(f'{value:.3g}' for value in shown)} {unit}"


def _replicas(machines: Sequence[Store]) -> str:
    def cells(store: Store) -> Iterator[tuple[tuple[str, ...], str]]:
        for one in store.data.get("replicas", ()):
            for name, rates in one["images_per_second"].items():
                spread = f"{min(rates):.3g} to {max(rates):.3g}"
                memory = one["weights_mib"][name]
                cell = f"**{statistics.median(rates):.3g}** images/s ({spread}); {memory:.0f} MiB of weights"
                yield (one["about"]["model"], name), cell

    return _side_by_side(
        "Replicas",
        "`python benchmarks/replicas.py`: a data set by one process with two threads and by two with one thread each, "
        "in turn. Weights: the memory of their mapped file in all processes together (Pss).",
        ("", "processes x threads"),
        machines,
        cells,
    )


def _startup(machines: Sequence[Store]) -> str:
    def cells(store: Store) -> Iterator[tuple[tuple[str, ...], str]]:
        for one in store.data.get("startup", ()):
            for name, seconds in one["seconds"].items():
                yield (f"{one['about']['shape']} {one['about']['dtype']}", name), f"{seconds:.2f} s"

    return _side_by_side(
        "Start-up",
        "`python benchmarks/startup.py`: `share4v caption` in a new process, the file in the page cache.",
        ("", "step"),
        machines,
        cells,
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    """Write the page, or check it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; the exit status is 1 if it is outdated")
    options = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if options.check:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
