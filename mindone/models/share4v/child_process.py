"""Starts Python processes that have this one's sys.path and environment, connected by a pipe of Python objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection

# Restores the owner's sys.path, of which `-c` changes the first entry.
_BOOT = """
import json, sys; sys.path[:] = json.loads(sys.argv[1])
from importlib import import_module; import_module(sys.argv[2]).main(int(sys.argv[3]))
"""


def start_python(
    module: str, environment: Mapping[str, str] | None = None
) -> tuple[Connection, subprocess.Popen[bytes]]:
    """Run `module.main`, which gets the descriptor of its end of a pipe, in a new process.

    The process must end when the pipe is closed. A module that is started this way needs no `if __name__` in the
    caller's program, as multiprocessing would.

    Args:
        module: full name of the module.
        environment: variables to add to this process's, or to replace.

    Returns:
        This end of the pipe, and the process.
    """
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            # Without the OMP_NUM_THREADS that MindSpore sets with C's setenv, which os.environ does not show.
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # its output must not mix with captions
            start_new_session=True,  # a terminal's Ctrl-C reaches only the owner
        )
    return ours, process
