"""A trial compilation of a grammar in a process that can be killed: llguidance's compiler cannot be interrupted.

A schema of a few hundred bytes, such as twenty patterns in an allOf, can keep the compiler busy for hours, and none of
its limits counts that work.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

MEMORY_BYTES = 4 * 2**30  # address space of the process
_PROGRAM = """
import sys
sys.path[:] = sys.argv[3:]
import resource
def limit(kind, value):
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
    return value
limit(resource.RLIMIT_CPU, int(sys.argv[1]))
memory = limit(resource.RLIMIT_AS, int(sys.argv[2]))
from llguidance import LLMatcher
print(memory, flush=True)
LLMatcher.validate_grammar(sys.stdin.read())
"""


def refusal(text: str, seconds: float) -> str | None:
    """Compile a grammar elsewhere, and return why it is too expensive; None if it is not, whatever else is wrong.

    Args:
        text: in llguidance's format (`constraints.grammar_of`).
        seconds: for the start of the process and the compilation.

    Raises:
        ImportError: llguidance is not installed.
        RuntimeError: the process ended before it compiled anything.
    """
    import_module("llguidance")
    # The process imports what this one does, whatever made its sys.path.
    command = [sys.executable, "-I", "-c", _PROGRAM, str(int(seconds) + 1), str(MEMORY_BYTES), *sys.path]
    try:
        done = subprocess.run(
            command, input=text.encode("utf-8", "surrogatepass"), timeout=seconds, capture_output=True, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {seconds:g} s to compile: make it simpler, with fewer patterns in an allOf"
    if done.returncode == 0:
        return None
    if not done.stdout:  # it prints its limit of memory before it compiles
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise RuntimeError(f"a trial compilation of a grammar could not start: {reason[0]}")
    return f"it takes more than {int(done.stdout) / 2**30:.3g} GiB of memory to compile: make it simpler"
