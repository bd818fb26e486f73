"""The engine "ray" on a real cluster of several processes: its output is the local one, even if a worker is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from helpers.pictures import shared_by_copies, write_folder, write_near_copies
from helpers.running_processes import descendants
from helpers.warm_processes import warm_python

from mindone.models.share4v.generation.engine import Engine
from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.dataset.executors import ray_executor
from mindone.pipelines.image_to_text.dataset.inference import captioner
from mindone.pipelines.image_to_text.dataset.inference.caption_cache import CaptionCache
from mindone.pipelines.image_to_text.dataset.inference.captioner import Captioner
from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings, ExecutorOptions, ModelChoice
from mindone.pipelines.image_to_text.dataset.readers import list_inputs
from mindone.pipelines.image_to_text.dataset.state.tasks import Task, write_tasks

TIMEOUT = 600.0  # seconds after which a hanging job fails the test
SCRIPT = """
import os, sys, time
from pathlib import Path
from mindone.pipelines.image_to_text.dataset.executors import ray_executor
from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings, ExecutorOptions, JobOptions

folder, out, engine, signals = sys.argv[1:]

class CaptionActor(ray_executor.CaptionActor):
    # Creates a file at its third block of tasks, and waits until the test has killed a worker.
    blocks = 0

    def __call__(self, block):
        self.blocks += 1
        if self.blocks == 3:
            Path(signals, f"waiting-{os.getpid()}").touch()
            while not Path(signals, "killed").exists():
                time.sleep(0.02)
        return super().__call__(block)

ray_executor.CaptionActor = CaptionActor
options = JobOptions(out=out, engine=engine, near_equal="once", executor=ExecutorOptions(actors=2, cpus=1, block=8))
print(caption_dataset(folder, settings=CaptioningSettings(batch_size=4), options=options))
"""


def start(folder: Path, out: Path, engine: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    python = warm_python() if engine == "local" else sys.executable
    arguments = [python, "-c", SCRIPT, str(folder), str(out), engine, str(out.parent)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def stable(path: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def listening_addresses(pid: int) -> set[str]:
    """Return the addresses, in hexadecimal, at which a process and its descendants accept TCP connections."""
    sockets: set[str] = set()
    for process in (pid, *descendants(pid)):
        with suppress(OSError):  # it, or a thread of it, has ended meanwhile
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(str(descriptor.readlink()))
    lines = [
        line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    is_listening = "0A"
    return {line[1].partition(":")[0] for line in lines if line[3] == is_listening and f"socket:[{line[9]}]" in sockets}


def test_a_killed_worker_is_replaced_and_no_other_machine_can_connect(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", 160, broken=True, duplicates=4)
    write_near_copies(tmp_path / "photos")
    local = start(tmp_path / "photos", tmp_path / "local.jsonl", "local")
    output, _ = local.communicate(timeout=TIMEOUT)
    assert local.returncode == 0, output
    job = start(tmp_path / "photos", tmp_path / "ray.jsonl", "ray")
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (waiting := list(tmp_path.glob("waiting-*"))):
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline, "no worker has reached its third block"
            time.sleep(0.02)
        addresses = listening_addresses(job.pid)
        assert addresses  # 127.0.0.1 in network order, also as an IPv6 address
        assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
        os.kill(int(waiting[0].name.removeprefix("waiting-")), signal.SIGKILL)
        (tmp_path / "killed").touch()
        output, _ = job.communicate(timeout=TIMEOUT)
    finally:
        job.kill()
    assert job.returncode == 0, output
    records = stable(tmp_path / "ray.jsonl")
    assert records == stable(tmp_path / "local.jsonl")
    shared = shared_by_copies(records)
    assert shared["part0/scene0000"] == "again0000.bmp" and shared["small/small0003"] == "scene0003.png"


def test_answers_outlive_the_actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver or an actor is killed; the actors of the next run ask nothing again."""
    write_folder(tmp_path / "photos", 5, broken=False)
    tasks = [Task(item, ("What is it?",), (None,)) for item in list_inputs([str(tmp_path / "photos")])]
    (block,) = write_tasks(tmp_path / "tasks.jsonl", tasks, 8)
    tiny = pipeline("image-to-text")

    def make(choice: ModelChoice, settings: CaptioningSettings, answers: Path) -> Captioner:
        return Captioner(tiny, "tiny", settings, CaptionCache(answers, settings))

    def records() -> list[dict[str, object]]:
        actor = ray_executor.CaptionActor(
            ModelChoice(model="tiny"), CaptioningSettings(), str(tmp_path / "tasks.jsonl")
        )
        found = map(json.loads, actor({"start": [block.start], "count": [block.count]})["record"])
        return [{name: value for name, value in record.items() if name != "seconds"} for record in found]

    monkeypatch.setattr(captioner, "make_captioner", make)
    first = records()  # the actor is not closed
    monkeypatch.setattr(Engine, "submit", None)
    assert records() == first and len(first) == 5 and all(record["captions"] for record in first)


@pytest.mark.parametrize("address", [None, "auto"])
@pytest.mark.parametrize("listens", [True, False])
def test_a_program_that_imported_ray_before_is_warned(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    listens: bool,
    address: str | None,
) -> None:
    """Ray decides at its import on which addresses its servers listen; here a stand-in was imported."""
    started = []
    stand_in = ModuleType("ray")
    stand_in.data = ModuleType("ray.data")
    stand_in.is_initialized = lambda: False
    stand_in.init = lambda address, **options: started.append(address)
    constants = ModuleType("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = listens
    for module in (stand_in, stand_in.data, constants):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(ray_executor.LISTEN_ELSEWHERE, "1")
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    ray_executor.RayExecutor(
        choice=ModelChoice(model="tiny"), settings=CaptioningSettings(), options=ExecutorOptions(), state=tmp_path
    )
    assert started == [address or "local"]
    is_warned = "listen on all addresses of this machine" in caplog.text
    assert is_warned == (listens and address is None)
    assert not is_warned or "set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before `import ray`" in caplog.text


def test_where_ray_decides_on_which_addresses_it_listens() -> None:
    """The names that the warning relies on, in the version of Ray that is installed."""
    code = """
from mindone.pipelines.image_to_text.dataset.executors import ray_executor
import ray
before = ray_executor.listens_elsewhere()
from ray._private import ray_constants
print(before, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == ray_executor.LISTEN_ELSEWHERE)
"""
    for value, listens in (("0", False), ("1", True)):
        environment = {**os.environ, ray_executor.LISTEN_ELSEWHERE: value}
        done = subprocess.run([warm_python(), "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.split() == [str(listens), "True"]
