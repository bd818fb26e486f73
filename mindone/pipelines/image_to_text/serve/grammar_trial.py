"""A trial compilation of a grammar in a process that can be killed: llguidance's compiler cannot be interrupted.

A schema of a few hundred bytes, such as twenty patterns in an allOf, can keep the compiler busy for hours, and none of
its limits counts that work.
"""

from __future__ import annotations

import subprocess
import sys

MEMORY_BYTES = 4 * 2**30  # address space of the process
_PROGRAM = """
import resource, sys
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
from llguidance import LLMatcher
LLMatcher.validate_grammar(sys.stdin.read())
"""


def refusal(text: str, seconds: float) -> str | None:
    """Compile a grammar elsewhere, and return why it is too expensive; None if it is not, whatever else is wrong.

    Args:
        text: in llguidance's format (`constraints.grammar_of`).
        seconds: for the start of the process and the compilation.
    """
    command = [sys.executable, "-I", "-c", _PROGRAM, str(int(seconds) + 1), str(MEMORY_BYTES)]
    try:
        done = subprocess.run(
            command, input=text.encode("utf-8", "surrogatepass"), timeout=seconds, capture_output=True, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {seconds:g} s to compile: make it simpler, with fewer patterns in an allOf"
    if done.returncode != 0:
        return f"it takes more than {MEMORY_BYTES // 2**30} GiB of memory to compile: make it simpler"
    return None
