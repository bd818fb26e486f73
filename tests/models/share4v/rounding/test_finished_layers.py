"""A conversion with GPTQ that is killed resumes, and its result has the same bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.warm_processes import warm_python

from mindone.models.share4v import calibration, convert
from mindone.models.share4v.rounding.finished_layers import FinishedLayers, fingerprint

TOKENS = 600  # few, since the result does not have to be good
KILLED = f"""
import os, signal, sys
from mindone.models.share4v import calibration, convert
calibration.TOKENS = {TOKENS}
from mindone.models.share4v.rounding.finished_layers import FinishedLayers
add = FinishedLayers.add
def add_and_die(self, layer, block):
    add(self, layer, block)
    if layer == 1:
        os.kill(os.getpid(), signal.SIGKILL)
FinishedLayers.add = add_and_die
convert("sharegpt4v-tiny", sys.argv[1], dtype="int4")
"""


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "TOKENS", TOKENS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    convert("sharegpt4v-tiny", whole, dtype="int4")
    assert sorted(path.name for path in whole.iterdir() if path.name.startswith(".")) == []
    done = subprocess.run([warm_python(), "-c", KILLED, str(killed)], capture_output=True, timeout=300)
    assert done.returncode == -9, done.stderr
    assert not (killed / "model.safetensors").exists()
    rounded = []
    add = FinishedLayers.add

    def counted(self: FinishedLayers, layer: int, block: np.ndarray) -> None:
        rounded.append(layer)
        add(self, layer, block)

    monkeypatch.setattr(FinishedLayers, "add", counted)
    convert("sharegpt4v-tiny", killed, dtype="int4")
    assert rounded[0] == 2  # the first two layers were not rounded again
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not list(killed.glob(".writing-int4-*"))


def test_layers_come_back_and_count_once_complete(tmp_path: Path) -> None:
    sequences = [np.full((length, 4), length, np.float32) for length in (3, 5)]
    finished = FinishedLayers(tmp_path / "work")
    finished.begin(sequences)
    assert finished.count == 0
    for layer in range(2):
        inputs = finished.sequences()
        assert [one.shape for one in inputs] == [(3, 4), (5, 4)]
        for index in range(2):
            inputs[index] = inputs[index] + 1
        finished.add(layer, np.full(7, layer, np.uint8))
    again = FinishedLayers(tmp_path / "work")
    again.begin(sequences)
    assert again.count == 2
    assert np.array_equal(again.block(0), np.zeros(7, np.uint8))
    killed = again.sequences()
    assert np.array_equal(killed[1], sequences[1] + 2)
    killed[0] = sequences[0] * 0  # in the middle of a layer
    (tmp_path / "work" / "block-00002").write_bytes(b"killed before the sequences were stored")
    resumed = FinishedLayers(tmp_path / "work")
    resumed.begin(sequences)
    assert resumed.count == 2
    assert np.array_equal(resumed.sequences()[0], sequences[0] + 2)
    resumed.remove()
    assert FinishedLayers(tmp_path / "work").count == 0


def test_another_source_or_text_has_another_fingerprint() -> None:
    ids = np.arange(5)
    assert fingerprint({"a": 1}, ids) == fingerprint({"a": 1}, np.arange(5))
    assert len({fingerprint({"a": 1}, ids), fingerprint({"a": 2}, ids), fingerprint({"a": 1}, ids + 1)}) == 3


def test_two_conversions_into_one_directory_do_not_mix(tmp_path: Path) -> None:
    """The second one, of a user who takes the first for dead, would change the sequences of the first."""
    finished = FinishedLayers(tmp_path / ".writing-int4-a")
    finished.begin([np.ones((2, 4), np.float32)])
    second = f"""
from pathlib import Path
from mindone.models.share4v.rounding.finished_layers import FinishedLayers
try:
    FinishedLayers(Path({str(finished.directory)!r})).begin([])
except BlockingIOError as error:
    print(error)
"""
    done = subprocess.run([warm_python(), "-c", second], capture_output=True, text=True, timeout=300)
    assert "another process is converting the same checkpoint" in done.stdout, done.stderr


def test_what_an_abandoned_conversion_left_is_deleted_but_not_what_a_running_one_uses(tmp_path: Path) -> None:
    abandoned, running = tmp_path / ".writing-int4-b", tmp_path / ".writing-int4-c"
    for directory in (abandoned, running):
        directory.mkdir()
    hold = f"""
import sys
from pathlib import Path
from mindone.models.share4v.rounding.finished_layers import lock
held = lock(Path({str(running)!r}))
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [warm_python(), "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        finished = FinishedLayers(tmp_path / ".writing-int4-a")
        finished.begin([np.ones((2, 4), np.float32)])
        finished.remove()
        assert sorted(tmp_path.iterdir()) == [running]
        process.communicate("")
