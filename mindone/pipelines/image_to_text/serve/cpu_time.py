"""CPU time of the server's threads, as Linux counts it: a busy machine makes them wait, but does not add to it."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

_PREFIX = "share4v-"  # of the names of threads; the others are the event loop's, and are counted as "http"


def thread_cpu_seconds() -> dict[str, float]:
    """Return the CPU time of Python's threads, by what they do: "model", "http", "read", "prepare", ...

    Threads that the model's libraries start are in no entry; they are in the process's time. Empty if the system does
    not say.

    Example:
        >>> from mindone.pipelines.image_to_text.serve.cpu_time import thread_cpu_seconds
        >>> thread_cpu_seconds()["http"] > 0  # on Linux
        True
    """
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        # "share4v-prepare_1" is a thread of a pool. A thread that has ended meanwhile has no file.
        part = thread.name.removeprefix(_PREFIX).partition("_")[0] if thread.name.startswith(_PREFIX) else "http"
        with suppress(OSError, ValueError, IndexError):
            on_cpu = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii").split()[0]
            found[part] = found.get(part, 0.0) + int(on_cpu) / 1e9
    return found
