"""Script of test_outages: jobs that are killed or run out of disk space, in children of a process without MindSpore.

python crashing.py ROOT kill|limit FOLDER SEED: prints how many child processes ended in the middle of a job.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import time
import types
from pathlib import Path

KILLS = 20
COUNT = 60  # images per kind of input


def without_upstream(root: str) -> None:
    """Make `mindone` this repository's package only, because the upstream package imports MindSpore."""
    for name in ("mindone", "mindone.models", "mindone.pipelines"):
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = [f"{root}/{name.replace('.', '/')}"]  # type: ignore[attr-defined]


def make_inputs(folder: Path) -> list[Path]:
    """Write images, some of them broken, into a folder, a table and a shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from helpers.jobs import png, write_tar

    for number in range(COUNT):
        path = folder / "photos" / f"part{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if number % 13 == 0 else png(number))
    write_tar(folder / "s.tar", [(f"{n}.png", png(1000 + n)) for n in range(COUNT)])
    pq.write_table(pa.table({"image": [png(2000 + n) for n in range(COUNT)]}), folder / "t.parquet", row_group_size=16)
    return [folder / "photos", folder / "s.tar", folder / "t.parquet"]


def run_job(inputs: list[Path], place: Path) -> None:
    """Run the job in this process, with every output format that these inputs allow."""
    from helpers.jobs import run
    from mindone.pipelines.image_to_text.dataset.writers import WriterOptions

    names = ("txt", "jsonl", "parquet", "webdataset")
    run(place / "state", inputs, [(name, place / "out") for name in names], WriterOptions(shard_size=25))


def check(place: Path, whole: dict[str, bytes]) -> None:
    """Check that every file with its final name is as in an undisturbed job."""
    from helpers.jobs import tree

    for name, data in tree(place / "out").items():
        if not name.endswith(".partial") and whole.get(name) != data:
            raise SystemExit(f"{name} has wrong content")


def child(inputs: list[Path], place: Path, limit: int | None) -> int:
    """Start a job in a child process; its exit status is 3 if the disk was full."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run_job(inputs, place)
        status = 0
    except OSError:
        status = 3
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
    finally:
        os._exit(status)


def kills(inputs: list[Path], place: Path, whole: dict[str, bytes], rng: random.Random, seconds: float) -> int:
    """Kill child processes at random moments until KILLS of them were killed while working."""
    count = 0
    while count < KILLS:
        process = child(inputs, place, None)
        time.sleep(rng.uniform(0, seconds / 4))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        check(place, whole)
        if os.WIFSIGNALED(status):
            count += 1
        elif os.WEXITSTATUS(status):
            raise SystemExit(f"a job failed with status {status}")
        else:
            shutil.rmtree(place)  # it finished before the kill: start another one
    return count


def limits(inputs: list[Path], place: Path, whole: dict[str, bytes]) -> int:
    """Run jobs with limits on the size of files."""
    count = 0
    for limit in (0, 100, 3000, 9000, 20_000, 33_000, 60_000, 80_000):
        for _ in range(2):
            _, status = os.waitpid(child(inputs, place, limit), 0)
            if os.waitstatus_to_exitcode(status) not in (0, 3):
                raise SystemExit(f"limit {limit}: status {status}")
            count += os.waitstatus_to_exitcode(status) == 3
            check(place, whole)
    return count


def main(root: str, what: str, folder: str, seed: str) -> None:
    """Run an undisturbed job, then a disturbed one, and compare their outputs."""
    without_upstream(root)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from helpers.jobs import tree

    work, rng = Path(folder), random.Random(int(seed))
    inputs = make_inputs(work)
    started = time.monotonic()
    run_job(inputs, work / "whole")
    seconds, whole = time.monotonic() - started, tree(work / "whole" / "out")
    place = work / "broken"
    count = kills(inputs, place, whole, rng, seconds) if what == "kill" else limits(inputs, place, whole)
    run_job(inputs, place)
    if tree(place / "out") != whole:
        raise SystemExit(f"the outputs differ: {sorted(tree(place / 'out').keys() ^ whole.keys())}")
    for name in ("inputs.jsonl", "journal.jsonl"):
        if (place / "state" / name).read_bytes() != (work / "whole" / "state" / name).read_bytes():
            raise SystemExit(f"{name} differs")
    before = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}
    run_job(inputs, place)
    if before != {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}:
        raise SystemExit("a finished job wrote something again")
    if "mindspore" in sys.modules:
        raise SystemExit("MindSpore was imported")
    sys.stdout.write(f"{count}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
