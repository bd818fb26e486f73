"""Measure how long a job's outputs take, without a model: images with three texts each, in four formats.

    python benchmarks/writers.py --count 1000 --count 5000

The journal and the outputs are flushed every 256 records, as a job does that makes as many in a second. Prints one JSON
object for each number of images; "seconds" are those of the journal and the writers, "cpu" their CPU time in all
threads, "fsync" the seconds spent waiting for the disk in the calls that flush files, summed over threads.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import machine
from PIL import Image

from mindone.pipelines.image_to_text.dataset.readers import list_inputs
from mindone.pipelines.image_to_text.dataset.state.journal import Journal
from mindone.pipelines.image_to_text.dataset.state.listing import Listing, write_listing
from mindone.pipelines.image_to_text.dataset.state.records import Record
from mindone.pipelines.image_to_text.dataset.writers import WriterOptions, open_writer

FORMATS = ("txt", "jsonl", "csv", "open-sora-csv")
TEXTS = ("long", "short", "tags")
GROUP = 256
_LOCK = threading.Lock()
_WAITED = [0.0, 0]  # seconds and calls


def timed_fsync(descriptor: int, original=os.fsync) -> None:
    """Flush a file, and add the time to _WAITED."""
    start = time.perf_counter()
    original(descriptor)
    with _LOCK:
        _WAITED[0] += time.perf_counter() - start
        _WAITED[1] += 1


def measure(folder: Path, count: int) -> dict[str, float]:
    """Write the outputs of a job of so many images."""
    images, state, out = folder / "images", folder / "state", folder / "out"
    images.mkdir()
    state.mkdir()
    Image.new("RGB", (8, 8)).save(images / "0.png")
    for number in range(1, count):
        os.link(images / "0.png", images / f"{number}.png")
    write_listing(state / "inputs.jsonl", list_inputs([str(images)]))
    listing, options = Listing(state / "inputs.jsonl"), WriterOptions(texts=TEXTS)
    _WAITED[:] = 0.0, 0
    start, cpu = time.perf_counter(), time.process_time()
    writers = [open_writer(name, str(out), options, state) for name in FORMATS]
    with closing(Journal(state / "journal.jsonl")) as journal:
        waiting: list[Record] = []
        for item in listing.items():
            captions = tuple(f"A {name} text about the image {item.number}. " * 4 for name in TEXTS)
            record = Record(item.number, item.key, item.source, captions, texts=TEXTS, tokens=(40, 40, 40))
            journal.append(record)
            waiting.append(record)
            if len(waiting) == GROUP or item.number == len(listing) - 1:
                journal.flush()
                for writer in writers:
                    for one in waiting:
                        writer.write(one)
                    writer.flush()
                waiting.clear()
    for writer in writers:
        writer.finish()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"images": count, "seconds": seconds, "cpu": cpu, "fsync": _WAITED[0], "fsyncs": _WAITED[1]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, action="append", metavar="N", help="images; can be repeated")
    arguments = parser.parse_args()
    os.fsync = timed_fsync
    print(json.dumps({"machine": machine.describe()}))
    for count in arguments.count or [1000]:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({name: round(value, 2) for name, value in measure(Path(folder), count).items()}))


if __name__ == "__main__":
    main()
