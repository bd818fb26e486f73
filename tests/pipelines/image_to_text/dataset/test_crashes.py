"""The command, killed again and again, ends with the output of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.pictures import write_folder
from helpers.warm_processes import warm_python

COUNT, DUPLICATES, KILLS = 220, 20, 12


def command(folder: Path, out: Path, *extra: str) -> list[str]:
    return ["-m", "mindone_share4v", "caption-dataset", str(folder), "--out", str(out), *extra]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "GLOG_v": "3"}


def finished(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [warm_python(), *arguments], capture_output=True, text=True, env=environment(), timeout=600, check=False
    )


def started(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a new Python: what is killed is killed while it imports, too."""
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )


def wait_for_work(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until the size of the job's journal has changed or the process has ended."""
    journal, deadline = out.with_name(f"{out.name}.share4v") / "journal.jsonl", time.monotonic() + 600

    def size() -> int:
        return journal.stat().st_size if journal.exists() else 0

    before = size()
    while size() == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def stable(line: str) -> dict[str, object]:
    """Return a record without the fields that differ from run to run."""
    values = json.loads(line)
    values.pop("seconds", None)
    return values


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("crashes")
    write_folder(place / "photos", COUNT, broken=True, duplicates=DUPLICATES)
    done = finished(command(place / "photos", place / "whole.jsonl"))
    assert done.returncode == 1, done.stderr  # because of the broken files
    return place, place / "whole.jsonl"


def test_a_job_killed_a_dozen_times_is_complete(undisturbed: tuple[Path, Path]) -> None:
    place, whole = undisturbed
    out, rng, kills = place / "killed.jsonl", random.Random(5), 0
    for attempt in range(40):
        process = started(command(place / "photos", out))
        if attempt % 2:  # mostly while it starts; otherwise while it works
            delay = rng.uniform(0.5, 4.0)
        else:
            wait_for_work(process, out)
            delay = rng.uniform(0.0, 0.2)
        try:
            status = process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert status == 1  # it finished before the kill
            if kills >= KILLS:
                break
            out.unlink()
            _remove_state(out)
        if kills >= KILLS:
            break
    assert kills >= KILLS
    done = finished(command(place / "photos", out))
    assert done.returncode == 1, done.stderr
    records = [stable(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert records == [stable(line) for line in whole.read_text(encoding="utf-8").splitlines()]
    assert len({record["key"] for record in records}) == len(records) == COUNT + DUPLICATES + 20


def _remove_state(out: Path) -> None:
    state = out.with_name(out.name + ".share4v")
    for path in state.iterdir():
        path.unlink()


def test_a_second_process_is_rejected(tmp_path: Path) -> None:
    """The first waits for an image that does not come."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(600)
        (tmp_path / "urls.txt").write_text(f"http://127.0.0.1:{silent.getsockname()[1]}/a.png")
        flags = ("--url-private", "--url-seconds", "600")
        arguments = command(tmp_path / "urls.txt", tmp_path / "out.jsonl", *flags)
        first = started(arguments)
        try:
            with silent.accept()[0]:
                second = finished(arguments)
                assert second.returncode == 3 and "another process is working on this job" in second.stderr
                assert first.poll() is None
        finally:
            first.kill()
            first.wait()


def test_other_settings_are_rejected(undisturbed: tuple[Path, Path]) -> None:
    place, whole = undisturbed
    changed = finished(command(place / "photos", whole, "--prompt", "What is this?"))
    assert changed.returncode == 3
    assert "--prompt was the style 'default'" in changed.stderr and "--restart" in changed.stderr
    assert "Traceback" not in changed.stderr


def test_a_finished_job_has_nothing_to_do(undisturbed: tuple[Path, Path]) -> None:
    place, whole = undisturbed
    before = whole.read_bytes()
    done = finished(command(place / "photos", whole))
    assert done.returncode == 1 and " 0 captioned" in done.stderr, done.stderr
    assert whole.read_bytes() == before


def test_a_job_stopped_by_a_full_disk_resumes(undisturbed: tuple[Path, Path]) -> None:
    """A limit on the size of files simulates a full disk."""
    place, whole = undisturbed
    out = place / "full.jsonl"
    limited = [
        "-c",
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.argv = sys.argv[1:];"
        "from mindone.pipelines.image_to_text.dataset import api;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000));"
        "from mindone_share4v.cli import main; sys.exit(main(sys.argv[1:]))",
        *command(place / "photos", out)[1:],
    ]
    stopped = finished(limited)
    assert stopped.returncode == 3 and "stopped: " in stopped.stderr and "Traceback" not in stopped.stderr
    done = finished(command(place / "photos", out))
    assert done.returncode == 1, done.stderr
    same = [stable(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert same == [stable(line) for line in whole.read_text(encoding="utf-8").splitlines()]


def test_an_input_that_was_deleted_is_one_failure(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", 6, broken=False)
    listed = finished(command(tmp_path / "photos", tmp_path / "a.jsonl", "--max-new-tokens", "3"))
    assert listed.returncode == 0, listed.stderr
    state = tmp_path / "a.jsonl.share4v"
    journal = (state / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (state / "journal.jsonl").write_bytes(b"".join(journal[:2]))  # as after a crash
    for path in sorted((tmp_path / "photos").rglob("*.png"))[3:4]:
        path.unlink()
    done = finished(command(tmp_path / "photos", tmp_path / "a.jsonl", "--max-new-tokens", "3"))
    assert done.returncode == 1 and "1 failed" in done.stderr, done.stderr
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 6
    failed = [json.loads(line) for line in (state / "failed.jsonl").read_text().splitlines()]
    assert len(failed) == 1 and failed[0]["error"]


def test_retrying_failures_survives_kills(undisturbed: tuple[Path, Path]) -> None:
    """It is killed while it starts the second pass, and the journal ends with an incomplete line."""
    place, whole = undisturbed
    out = place / "retried.jsonl"
    assert finished(command(place / "photos", out)).returncode == 1
    journal = place / "retried.jsonl.share4v" / "journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"number": 9')
    bad = sorted((place / "photos").rglob("bad-*"))[0]
    kept = bad.read_bytes()
    bad.write_bytes(next((place / "photos").rglob("*.png")).read_bytes())
    try:
        for delay in (0.0, 0.1, 0.4):
            job = started(command(place / "photos", out, "--retry-failed"))
            wait_for_work(job, out)
            try:
                job.wait(delay)
            except subprocess.TimeoutExpired:
                job.send_signal(signal.SIGKILL)
                job.wait()
        done = finished(command(place / "photos", out, "--retry-failed"))
    finally:
        bad.write_bytes(kept)
    assert done.returncode == 1, done.stderr
    before = [stable(line) for line in whole.read_text(encoding="utf-8").splitlines()]
    after = [stable(line) for line in out.read_text(encoding="utf-8").splitlines()]
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1 and str(bad) in changed[0][1]["source"] and changed[0][1]["caption"]
