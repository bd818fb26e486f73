"""A trial compilation of a grammar in a process that can be killed: llguidance's compiler cannot be interrupted.

A schema of a few hundred bytes, such as twenty patterns in an allOf, can keep the compiler busy for hours, and none of
its limits counts that work.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib import import_module

COMPILE_SECONDS = 5.0  # of CPU time, which a grammar of somebody else may take
MEMORY_BYTES = 4 * 2**30  # address space of the process
# The time of the process by the clock, which only ends one that hangs: a busy machine may give it a fraction of a CPU.
# On Windows, which has no limits of CPU time and memory for a process, it is the only limit.
_CLOCK_PER_CPU_SECOND = 6.0
_CLOCK_ALLOWANCE = 60.0  # seconds
# SIGPROF ends the process when compiling has taken its CPU time, without that of starting Python.
_PROGRAM = """
import sys
sys.path[:] = sys.argv[3:]
import signal
try:
    import resource
except ImportError:  # Windows
    resource = None
def limit(kind, value):
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
    return value
memory = limit(resource.RLIMIT_AS, int(sys.argv[2])) if resource else int(sys.argv[2])
from llguidance import LLMatcher
grammar = sys.stdin.read()
print(memory, flush=True)
if resource:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
LLMatcher.validate_grammar(grammar)
"""


class TrialEndedError(Exception):
    """A trial compilation was ended before it had a result."""


class Trial:
    """A trial compilation, which any thread may end while another one waits for its result."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ended = False

    def end(self) -> None:
        """End the compilation, which raises TrialEndedError; one that has not begun does not begin."""
        # Without a lock: starting a process takes long on a busy machine, and an event loop must not wait for it.
        # `refusal` sets `_process` before it looks at `_is_ended`: one of the two always sees what the other has set.
        self._is_ended = True
        process = self._process
        if process is not None:
            process.kill()  # no effect on a process that has ended

    def check(self) -> None:
        """Check that the compilation is wanted still.

        Raises:
            TrialEndedError: `end` was called.
        """
        if self._is_ended:
            raise TrialEndedError

    def refusal(self, text: str, seconds: float) -> str | None:
        """As the function `refusal`.

        Raises:
            TrialEndedError: `end` was called.
        """
        import_module("llguidance")
        # The process imports what this one does, whatever made its sys.path.
        command = [sys.executable, "-I", "-c", _PROGRAM, str(seconds), str(MEMORY_BYTES), *sys.path]
        data, clock = text.encode("utf-8", "surrogatepass"), _CLOCK_ALLOWANCE + _CLOCK_PER_CPU_SECOND * seconds
        self.check()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._process = process
        with process:
            try:
                self.check()
                output, errors = process.communicate(data, clock)
            except subprocess.TimeoutExpired:
                return _too_slow(seconds)
            finally:
                process.kill()
        self.check()
        if process.returncode == 0:
            return None
        if process.returncode == -getattr(signal, "SIGPROF", 0):
            return _too_slow(seconds)
        if not output:  # it prints its limit of memory before it compiles
            reason = errors.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"status {process.returncode}"]
            raise RuntimeError(f"a trial compilation of a grammar could not start: {reason[0]}")
        return f"it takes more than {int(output) / 2**30:.3g} GiB of memory to compile: make it simpler"


def refusal(text: str, seconds: float) -> str | None:
    """Compile a grammar elsewhere, and return why it is too expensive; None if it is not, whatever else is wrong.

    Args:
        text: in llguidance's format (`constraints.grammar_of`).
        seconds: of CPU time, for the compilation.

    Raises:
        ImportError: llguidance is not installed.
        RuntimeError: the process ended before it compiled anything.
    """
    return Trial().refusal(text, seconds)


def _too_slow(seconds: float) -> str:
    return f"it takes more than {seconds:g} s to compile: make it simpler, with fewer patterns in an allOf"
