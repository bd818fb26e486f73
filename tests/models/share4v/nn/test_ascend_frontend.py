"""MindSpore's front end accepts graphs of the Ascend path, and rejects those with a mistake in them.

Nothing runs: see helpers/ascend_frontend.py. What the front end cannot detect (an inverted mask, a wrong scale, wrong
lengths) is left to the stand-ins, tests/ascend/test_controls.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from helpers.frontend_cases import CASES, MISTAKES, REFUSED, SIMULATION
from helpers.frontend_operators import ANSWERS
from helpers.paths import TESTS

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One process compiles everything, because MindSpore reads the variable when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers.ascend_frontend", str(tmp_path_factory.mktemp("mistakes"))],
        env={**os.environ, **SIMULATION, "PYTHONPATH": str(TESTS)},
        cwd=tmp_path_factory.mktemp("run"),  # where MindSpore writes files of its own
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    missing = {*CASES, *ANSWERS, *REFUSED} - {line["name"] for line in lines}
    assert not missing, f"the process ended with status {done.returncode} after {lines[-1:]}: {done.stderr[-2000:]}"
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", CASES)
def test_a_graph_compiles(name: str, results: Results) -> None:
    assert results[name]["error"] is None
    assert results[name]["fused"] == CASES[name].is_fused


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_does_not_compile(name: str, results: Results) -> None:
    """The original of each graph compiles (above), so what fails is the mistake."""
    assert results[name]["error"], f"a graph compiles with {MISTAKES[name].change}"


@pytest.mark.parametrize("name", ANSWERS)
def test_an_operator_that_is_not_offered_is_answered_as_documented(name: str, results: Results) -> None:
    """If one of these fails with a new MindSpore, docs/hardware.md and the decision not to offer it may be outdated."""
    error, expected = results[name]["error"], ANSWERS[name]
    assert (error is None) == (expected is None) and (expected or "") in (error or ""), error
