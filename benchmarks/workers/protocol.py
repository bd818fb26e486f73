"""The protocol of the workers of compare.py: one JSON request per line, answered by one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol


class Runner(Protocol):
    """Measures one model of one library. Every method does the work once and returns the seconds that it took."""

    def encode(self) -> float:
        """Encode one image with the vision tower."""

    def prefill(self, tokens: int) -> float:
        """Process a prompt of `tokens` tokens with an empty cache, up to the logits of the last token."""

    def decode(self, tokens: int, context: int) -> float:
        """Generate `tokens` tokens after `context` others, greedily; returns the mean per token."""

    def batch_decode(self, batch: int, tokens: int, context: int) -> float:
        """Generate `tokens` tokens for `batch` sequences, each after `context` others; returns the mean per step."""

    def limits(self) -> dict[str, float]:
        """Return the limits of the machine, as benchmarks/limits.py measures them; of this package's worker only."""

    def use(self, variant: str) -> None:
        """Use one of the ways to decode batches that the worker's facts name as "variants", if there are any."""


@dataclass(frozen=True)
class Options:
    """The command line of a worker."""

    shape: str
    dtype: str
    threads: int
    directory: Path


def _prefill(runner: Runner, request: dict[str, int]) -> dict[str, float]:
    return {"tokens_per_second": request["tokens"] / runner.prefill(request["tokens"])}


def _decode(runner: Runner, request: dict[str, int]) -> dict[str, float]:
    return {"seconds_per_token": runner.decode(request["tokens"], request["context"])}


def _batch_decode(runner: Runner, request: dict[str, Any]) -> dict[str, float]:
    if "variant" in request:
        runner.use(request["variant"])
    return {"seconds_per_step": runner.batch_decode(request["batch"], request["tokens"], request["context"])}


def _encode(runner: Runner, request: dict[str, int]) -> dict[str, float]:
    return {"seconds": runner.encode()}


def _limits(runner: Runner, request: dict[str, int]) -> dict[str, float]:
    return runner.limits()


ANSWERS: dict[str, Callable[[Runner, dict[str, Any]], dict[str, float]]] = {
    "prefill": _prefill, "decode": _decode, "batch_decode": _batch_decode, "encode": _encode, "limits": _limits,
}  # fmt: skip


def serve(build: Callable[[Options], tuple[Runner, dict[str, Any]]], packages: tuple[str, ...]) -> None:
    """Build a runner, send `{"ready": facts}`, and answer requests until the input ends.

    Args:
        build: returns the runner and a dict of facts about it.
        packages: distributions whose versions are added to the facts.
    """
    # Libraries print to standard output. Keep it for the answers, and send what they print to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    runner, facts = build(_options())
    ready = {"versions": {name: _version(name) for name in packages}, **facts}
    answers.write(json.dumps({"ready": ready}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = ANSWERS[request["do"]](runner, request)
            reply["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            answers.write(json.dumps(reply) + "\n")
        except Exception as error:  # compare.py reports it and continues with the next pair
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")


def _options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    return Options(**vars(parser.parse_args()))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
