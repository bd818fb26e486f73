"""examples/sharegpt_4v/ascend/report.py: whatever a check does, there is a report, and nothing private in it."""

from __future__ import annotations

import getpass
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT
from helpers.warm_processes import warm_python

ASCEND = ROOT / "examples" / "sharegpt_4v" / "ascend"
FAKE = """
import os, sys, time, getpass, socket
from dataclasses import dataclass, field
from pathlib import Path

@dataclass
class Settings:
    device: str
    model: str
    patience: float
    dtype: object = None
    def flags(self):
        return ["--device", self.device, "--model", self.model, "--patience", str(self.patience)]

@dataclass
class Check:
    title: str
    run: object
    seconds: float = 300

def dies(settings):
    sys.stderr.write("the driver says goodbye")
    os._exit(9)

CHECKS = {
    "right": Check("a check", lambda settings: {"status": "ok", "numbers": [1, 2]}),
    "raises": Check("a check", lambda settings: 1 / 0),
    "dies": Check("a check", dies),
    "hangs": Check("a check", lambda settings: time.sleep(60), 0.5),
    "missing": Check("a check", lambda settings: {"status": "not supported"}),
    "private": Check("a check", lambda settings: {
        "status": "ok", "place":
        f"in {Path.home()}/secret/model and {os.getcwd()}/x: {socket.gethostname()}, user {getpass.getuser()}",
    }),
}
"""


def report(script: Path, out: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    command = [sys.executable, str(script), "--device", "CPU", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parent, timeout=1200)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    written: dict[str, Any] = json.loads((out / "report.json").read_text())
    text = (out / "report.txt").read_text()
    assert text.startswith("Rehearsal on a CPU: it says nothing about an Ascend.") and "Traceback" not in text
    assert all(name in text for name in written["checks"])
    return written


def test_every_end_of_a_check_is_reported(tmp_path: Path) -> None:
    shutil.copy(ASCEND / "report.py", tmp_path)
    (tmp_path / "report_checks.py").write_text(FAKE)
    found = report(tmp_path / "report.py", tmp_path / "out", status=1)
    assert found["is_rehearsal"] and found["device"] == "CPU"
    checks = found["checks"]
    assert {name: check["status"] for name, check in checks.items()} == {
        "right": "ok",
        "raises": "failed",
        "dies": "crashed",
        "hangs": "timed out",
        "missing": "not supported",
        "private": "ok",
    }
    assert checks["right"]["numbers"] == [1, 2] and checks["raises"]["message"].startswith("ZeroDivisionError")
    assert checks["dies"]["exit"] == 9 and checks["dies"]["message"] == "the driver says goodbye"
    for file in ("report.json", "report.txt"):
        text = (tmp_path / "out" / file).read_text()
        private = (str(Path.home()) + "/", str(tmp_path), socket.gethostname(), "secret")
        assert not [word for word in private if len(word) > 3 and word in text]
    assert f"user {getpass.getuser()}" not in checks["private"]["place"] or len(getpass.getuser()) < 5
    only = report(tmp_path / "report.py", tmp_path / "other", "--only", "right", "missing")
    assert list(only["checks"]) == ["right", "missing"]


def test_a_bad_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(ASCEND / "report.py"), "--out", str(tmp_path / "file" / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "cannot be created" in done.stderr and "Traceback" not in done.stderr


def test_a_rehearsal(tmp_path: Path) -> None:
    """The short form: versions, a product, and logits of the tiny model against those that are stored."""
    only = ("environment", "device", "parity-float16")
    found = report(ASCEND / "report.py", tmp_path, "--patience", "5", "--only", *only)["checks"]
    assert [check["status"] for check in found.values()] == ["ok"] * 3
    assert found["environment"]["versions"]["mindspore"][:2] == "2."
    assert found["parity-float16"]["error"] < 1e-4 and found["parity-float16"]["same_top"] == "39 of 39"


def test_a_rehearsal_of_training(tmp_path: Path) -> None:
    """In each precision of the device, as the recipe needs it; a CPU has no bfloat16."""
    found = report(ASCEND / "report.py", tmp_path, "--only", "training")["checks"]["training"]
    assert found["status"] == "ok" and list(found["losses"]) == ["float32", "float16"]
    assert all(len(losses) == 3 and losses[2] < losses[0] for losses in found["losses"].values())
    assert found["losses"]["float16"] == pytest.approx(found["losses"]["float32"], rel=1e-2)


def one_check(name: str) -> dict[str, Any]:
    """Return what a check's own process says, without the import of MindSpore."""
    command = [warm_python(), str(ASCEND / "report.py"), "--check", name, "--device", "CPU"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ASCEND, timeout=300)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("report-result ")]
    return json.loads(line.removeprefix("report-result "))  # type: ignore[no-any-return]


def test_a_rehearsal_of_the_caption() -> None:
    """Prefill, decoding and sampling with the device's half precision."""
    found = one_check("caption")
    assert found["status"] == "ok" and found["dtype"] == "float16", found


def test_a_rehearsal_of_memory() -> None:
    """The model runs, and the figures to compare with are computed; MindSpore counts a card's memory only."""
    found = one_check("memory")
    assert found["status"] == "not supported" and found["message"].startswith("MindSpore counts"), found
    assert all(mebibytes > 0 for mebibytes in found["computed"].values()), found


def test_the_stored_logits_are_those_of_the_caption() -> None:
    stored = json.loads((ASCEND / "expected_logits.json").read_text())
    assert len(stored["tops"]) == len(stored["logits"]) == len(stored["ids"])
    assert [row[0] for row in stored["tops"]] == stored["ids"]  # greedy decoding gives the caption
    assert all(row == sorted(row, reverse=True) for row in stored["logits"])


@pytest.fixture(scope="module")
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_memory", ROOT / "docs" / "generate_memory.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_memory_table_is_the_computed_one(generator: Any) -> None:
    page = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    assert page == generator.page(page), "run: python docs/generate_memory.py"


def test_computed_memory_is_that_of_mindspores_dry_run(generator: Any) -> None:
    """Of the 7B in bfloat16 with 4 sequences of 2,048 tokens, when a cache had one spare slot per sequence."""
    from mindone.models.share4v.device_memory import cache_bytes, device_memory, weight_bytes

    config, mebibyte = generator.MODELS["7B"], 2**20
    weights = weight_bytes(config, "bfloat16") / mebibyte
    cache = 4 * cache_bytes(config, "bfloat16", 2049) / mebibyte
    assert weights == pytest.approx(13474, rel=1e-3)
    assert cache == pytest.approx(17556 - 13474, rel=1e-2) and weights + cache == pytest.approx(17556, rel=1e-2)
    now = device_memory(config, "bfloat16", 4, 2048)
    assert now.cache == 4 * cache_bytes(config, "bfloat16", 2048 + 64) and now.weights == weight_bytes(
        config, "float16"
    )
    with pytest.raises(ValueError, match="dtype 'int2' is not supported"):
        device_memory(config, "int2", 1, 1)
    with pytest.raises(ValueError, match="must be positive"):
        device_memory(config, "int4", 0, 2048)
