"""Measures time and peak memory of `share4v audit` on generated captions: `python benchmarks/audit.py --count 1000000`.

The words are drawn from 50,000 with the frequencies of a natural language (Zipf's law), a tenth of the captions differs
from an earlier one in one word, and one in a hundred is a copy.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from itertools import accumulate, islice

from machine import describe

from mindone.pipelines.image_to_text.dataset.audit import CaptionText, audit_captions

VOCABULARY = 50_000
EARLIER = 1000  # captions that may be repeated


def captions(count: int, seed: int) -> Iterator[CaptionText]:
    """Yield captions of 20 to 80 words, the same for a seed."""
    rng = random.Random(seed)
    words = [f"{rng.choice('bcdfgklmnprst')}{rng.choice('aeiou')}{number:x}" for number in range(VOCABULARY)]
    weights = list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))
    earlier: list[list[str]] = []
    for number in range(count):
        kind = rng.random()
        if earlier and kind < 0.11:
            chosen = list(rng.choice(earlier))
            if kind < 0.1:
                chosen[rng.randrange(len(chosen))] = rng.choice(words)
        else:
            chosen = rng.choices(words, cum_weights=weights, k=rng.randint(20, 80))
            if len(earlier) < EARLIER:
                earlier.append(chosen)
        remaining = iter(chosen)
        sentences = []
        while sentence := list(islice(remaining, 15)):
            sentences.append(" ".join(sentence))
        yield CaptionText(f"ohwx, {'. '.join(sentences)}.", f"{number:07d}.txt")


def peak_mib() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Generate the captions, audit them, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="number of captions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the captions (default: %(default)s)")
    arguments = parser.parse_args()
    before = peak_mib()
    started = time.perf_counter()
    for _ in captions(arguments.count, arguments.seed):
        pass
    generated = time.perf_counter()
    audit = audit_captions(captions(arguments.count, arguments.seed), "ohwx")
    ended = time.perf_counter()
    near = audit.near_duplicates
    result = {
        "captions": audit.captions,
        "seconds": round((ended - generated) - (generated - started), 1),
        "peak_mib": round(peak_mib()),
        "peak_mib_before": round(before),
        "different": {kind: len(getattr(audit, kind)) for kind in ("words", "pairs", "triples", "tags")},
        "max_error": {kind: getattr(audit, kind).max_error for kind in ("words", "pairs", "triples", "tags")},
        "near_duplicates": {"identical": near.identical, "captions": near.captions, "groups": near.groups},
        "machine": describe(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
