"""The scripts of examples/sharegpt_4v/ascend, as far as a CPU can run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.warm_processes import warm_python

ASCEND = ROOT / "examples" / "sharegpt_4v" / "ascend"
PORTABLE = ["linear", "embedding", "layer_norm", "gelu", "cache_write", "rms_norm", "rotary"]


def run(
    script: Path, *arguments: str | Path, status: int = 0, cwd: Path, **environment: str
) -> list[dict[str, object]]:
    command = [warm_python(), str(script), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, timeout=300
    )
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_operators_are_right_on_a_cpu_and_the_fused_ones_are_not_supported(dtype: str, tmp_path: Path) -> None:
    fused = ["fused_rms_norm", "fused_rotary_decode", "flash_attention_score_prefill", "incre_flash_attention"]
    reports = run(ASCEND / "check_operators.py", *PORTABLE, *fused, "--dtype", dtype, cwd=tmp_path)
    assert [report["operator"] for report in reports] == [*PORTABLE, *fused]
    assert [report["status"] for report in reports] == ["ok"] * len(PORTABLE) + ["not supported"] * len(fused)
    assert {report["dtype"] for report in reports} == {dtype}


def test_a_dtype_that_the_device_does_not_have_is_no_failure(tmp_path: Path) -> None:
    """So that the rehearsal of a report on a CPU does not end with failed checks of bfloat16."""
    names = ["linear", "gelu", "cache_write", "fused_rms_norm"]
    arguments = [*names, "--dtype", "bfloat16", "--device", "CPU", "--here"]
    reports = run(ASCEND / "check_operators.py", *arguments, cwd=tmp_path)
    assert reports == [{"operator": name, "dtype": "bfloat16", "status": "not supported"} for name in names]


def test_failures_are_reported_and_the_other_operators_still_run(tmp_path: Path) -> None:
    shutil.copy(ASCEND / "check_operators.py", tmp_path)
    (tmp_path / "operator_cases.py").write_text(
        "import os\n"
        "import numpy as np\n"
        "ONE = np.ones(3)\n"
        "def is_supported(dtype):\n"
        "    return True\n"
        "CASES = {\n"
        "    'right': lambda dtype: (ONE, ONE),\n"
        "    'dies': lambda dtype: os._exit(9),\n"
        "    'wrong': lambda dtype: (ONE, 2 * ONE),\n"
        "    'not_a_number': lambda dtype: (ONE * np.nan, ONE),\n"
        "    'of_another_shape': lambda dtype: (ONE, ONE[:2]),\n"
        "    'raises': lambda dtype: 1 / 0,\n"
        "    'missing': lambda dtype: None,\n"
        "}\n"
    )
    reports = run(tmp_path / "check_operators.py", status=1, cwd=tmp_path)
    found = {str(report["operator"]): report for report in reports}
    assert {name: report["status"] for name, report in found.items()} == {
        "right": "ok",
        "dies": "crashed",
        "wrong": "wrong",
        "not_a_number": "wrong",
        "of_another_shape": "wrong",
        "raises": "failed",
        "missing": "not supported",
    }
    assert found["dies"]["exit"] == 9 and "ZeroDivisionError" in str(found["raises"]["message"])
    run(tmp_path / "check_operators.py", "right", "missing", cwd=tmp_path)
    run(tmp_path / "check_operators.py", "unknown", status=2, cwd=tmp_path)


def test_throughput(checkpoint: Path, tmp_path: Path) -> None:
    arguments = [
        "--model",
        checkpoint,
        "--dtype",
        "float32",
        "--batch-sizes",
        "1",
        "2",
        "--tokens",
        "3",
        "--rounds",
        "1",
    ]
    reports = run(ASCEND / "throughput.py", *arguments, cwd=tmp_path)
    assert [report["batch_size"] for report in reports] == [1, 2]
    assert all(report["device"] == "CPU" and report["decoded_tokens_per_second"] > 0 for report in reports)
