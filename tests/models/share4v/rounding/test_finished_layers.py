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
    finished.close()
    again = FinishedLayers(tmp_path / "work")
    again.begin(sequences)
    assert again.count == 2
    assert np.array_equal(again.block(0), np.zeros(7, np.uint8))
    killed = again.sequences()
    assert np.array_equal(killed[1], sequences[1] + 2)
    killed[0] = sequences[0] * 0  # in the middle of a layer
    (tmp_path / "work" / "block-00002").write_bytes(b"killed before the sequences were stored")
    again.close()
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
    assert "the same checkpoint is being converted" in done.stdout, done.stderr
    with pytest.raises(BlockingIOError, match="is being converted into it already"):  # and so in two threads
        FinishedLayers(finished.directory).begin([])
    finished.close()
    FinishedLayers(finished.directory).begin([])


def test_a_conversion_that_failed_can_be_repeated_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook keeps the error, and with it all that the failed conversion had open."""
    monkeypatch.setattr(calibration, "TOKENS", TOKENS)

    def disk_is_full(self: FinishedLayers, layer: int, block: np.ndarray) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(FinishedLayers, "add", disk_is_full)
    with pytest.raises(OSError, match="disk full") as kept:
        convert("sharegpt4v-tiny", tmp_path, dtype="int4")
    (directory,) = tmp_path.glob(".writing-int4-*")
    FinishedLayers(directory).begin([])
    assert kept.traceback


def test_layers_that_another_conversion_finished_stay_and_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are hours of work, which the other command would continue; the user decides."""
    other, running = tmp_path / ".writing-int4-other", FinishedLayers(tmp_path / ".writing-int4-running")
    interrupted = FinishedLayers(other)
    interrupted.begin([np.ones((2, 4), np.float32)])
    interrupted.sequences()
    interrupted.add(0, np.zeros(1_500_000, np.uint8))
    interrupted.close()
    running.begin([np.ones((2, 4), np.float32)])
    started = FinishedLayers(tmp_path / ".writing-int4-started")
    started.begin([np.ones((200, 4), np.float32)])
    started.close()
    (tmp_path / ".writing-int4-gone").symlink_to(tmp_path / "nothing")  # as if it were deleted at this moment
    convert("sharegpt4v-tiny", tmp_path, dtype="float16")
    first, second = (record.getMessage() for record in caplog.records if ".writing-" in record.getMessage())
    assert str(other) in first and "1 layer " in first and "1.50MB" in first
    assert str(started.directory) in second and "0 layers (3.20kB)" in second
    assert FinishedLayers(other).count == 1
    assert running.directory.is_dir()
