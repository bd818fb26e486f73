"""Compiles the graphs of the Ascend path with MindSpore's own front end, on a CPU: a program that prints JSON lines.

With MS_SIMULATION_LEVEL=0, set before MindSpore is imported, MindSpore parses a graph, infers its shapes and dtypes
with the real operators' signatures, and compiles it, but runs nothing: a graph returns 0. So this shows that a call is
well-formed, never what it computes. Neither CANN nor a card is used.

    cd tests && MS_SIMULATION_LEVEL=0 python -m helpers.ascend_frontend WORK_DIRECTORY [NAME...]

First the cases of `CASES` are compiled, then the operators of `QUESTIONS`, then the mistakes `REFUSED`, each in a copy
of the package's sources. The name "long" stands for all LONG_CASES.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mindspore as ms

from .changed_sources import changed_copy, import_from
from .frontend_cases import CASES, LONG_CASES, MISTAKES, REFUSED, Case
from .frontend_graphs import COMPILERS, build
from .frontend_operators import QUESTIONS

# What follows once a `mindspore.jit` function is compiled, because level 0 builds nothing to run. On MindSpore 2.7 some
# return the number 0 in place of a tensor, which the trainer cannot use.
COMPILED = ("Can't find run graph func", "object has no attribute 'asnumpy'")


def error_of(compiles: Callable[[], Any]) -> str | None:
    """Return the error of what compiles a graph; None if there was none."""
    try:
        compiles()
    except Exception as problem:
        if not any(message in str(problem) for message in COMPILED):
            return f"{type(problem).__name__}: {str(problem).strip()[:500]}"
    return None


def compile_case(case: Case) -> dict[str, Any]:
    """Compile a case; return its error, and whether both attentions are fused."""
    fused: list[bool] = []

    def compile_graph() -> None:
        model = build(case)
        attention = model.language_model.model.layers[0].self_attn
        fused.extend([type(attention.attend).__name__ == "FlashAttention", attention.attend_one is not None])
        COMPILERS[case.graph](model, case)

    return {"error": error_of(compile_graph), "fused": fused or None}


def answer_question(question: Callable[[], None]) -> dict[str, Any]:
    """Compile an operator; return its error."""
    return {"error": error_of(question)}


def report(name: str, answer: Callable[[], dict[str, Any]]) -> None:
    """Write what `answer` returns as a line of JSON."""
    start = time.process_time()
    result = {"name": name, **answer(), "cpu_seconds": round(time.process_time() - start, 2)}
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def main(work: Path, only: Sequence[str] = ()) -> None:
    """Compile all cases, operators and mistakes, or those named; `work` is an empty directory."""
    ms.set_device("CPU")
    gc.freeze()  # MindSpore collects garbage whenever it compiles a graph: not in all that was imported
    every = CASES | LONG_CASES
    names = LONG_CASES if list(only) == ["long"] else only or (*CASES, *QUESTIONS, *REFUSED)
    copies = {name: changed_copy(MISTAKES[name].change, work / name) for name in names if name in MISTAKES}
    for name in names:
        if name in every:
            report(name, partial(compile_case, every[name]))
        elif name in QUESTIONS:
            report(name, partial(answer_question, QUESTIONS[name]))
    for name, directory in copies.items():
        import_from(directory)
        report(name, partial(compile_case, CASES[MISTAKES[name].case]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
