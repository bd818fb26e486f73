"""The engine "ray" on a real cluster of several processes: the local engine's output, workers lost or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.pictures import write_folder

SCRIPT = """
import sys
from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings, ExecutorOptions, JobOptions

def main(folder, out, engine):
    options = JobOptions(out, engine=engine, executor=ExecutorOptions(actors=2, cpus=1, block=8))
    print(caption_dataset(folder, settings=CaptioningSettings(batch_size=4), options=options))

main(*sys.argv[1:])
"""


def start(folder: Path, out: Path, engine: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    arguments = [sys.executable, "-c", SCRIPT, str(folder), str(out), engine]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def descendants(process: int) -> dict[int, str]:
    """Command lines of all processes that came of one."""
    parents, lines = {}, {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                stat = (place / "stat").read_text()
                lines[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            parents[int(place.name)] = int(stat.rpartition(")")[2].split()[1])
    found, front = {}, {process}
    while front:
        front = {child for child, parent in parents.items() if parent in front}
        found |= {child: lines[child] for child in front}
    return found


def stable(path: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_a_worker_that_is_killed_is_replaced_and_the_result_is_the_local_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", 160, broken=True, twins=4)
    local = start(tmp_path / "photos", tmp_path / "local.jsonl", "local")
    assert local.wait(300) == 0, local.stdout and local.stdout.read()
    job = start(tmp_path / "photos", tmp_path / "ray.jsonl", "ray")
    try:
        tasks, killed = tmp_path / "ray.jsonl.share4v" / "tasks.jsonl", None
        journal = tasks.with_name("journal.jsonl")
        deadline = time.monotonic() + 200
        while killed is None and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            if journal.exists() and journal.stat().st_size:  # captions have begun to come
                actors = [pid for pid, line in descendants(job.pid).items() if "CaptionActor" in line]
                if actors:
                    killed = actors[0]
                    os.kill(killed, signal.SIGKILL)
        output, _ = job.communicate(timeout=300)
    finally:
        job.kill()
    assert job.returncode == 0, output
    assert killed is not None, output
    assert stable(tmp_path / "ray.jsonl") == stable(tmp_path / "local.jsonl")
