"""A kernel that gets no memory, or no threads, raises an error, wherever that happens; the process goes on."""

from __future__ import annotations

import pytest
from helpers.limits import run_limited

# Memory is limited when everything but the kernel's own buffers has been allocated, and once more is plenty.
PREPARE = """
import os, resource
import numpy as np
from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.kernels.packing import BlockSpec, BlockWriter, MatrixSpec
kernels = library()
kernels.threads = 2

def block(rows, columns):
    writer = BlockWriter(BlockSpec(matrices=(MatrixSpec(rows, columns, "float32"),)))
    return writer

def with_memory(megabytes, function, *arguments):
    in_use = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + megabytes * 2**20, -1))
    try:
        return function(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))

def outcome(megabytes, function, *arguments):
    try:
        with_memory(megabytes, function, *arguments)
        return "computed"
    except MemoryError as error:
        return str(error)
"""
LINEAR = """
writer = block(16, 64)
writer.matrix(0, np.ones((16, 64), np.float32))
packed = writer.block
x, index = np.ones((1, 64), np.float32), np.zeros(1_000_000, np.int32)
def linear(count):
    return kernels.call("share4v_linear", [x, index[:count], packed], np.empty((count, 16), np.float32))
def run():
    linear(4)  # starts the threads
    wide = block(60_000, 64)
    wide.matrix(0, np.ones((60_000, 64), np.float32))
    output = np.empty((512, 60_000), np.float32)
    call = lambda: kernels.call("share4v_linear", [x, index[:512], wide.block], output)
    return outcome(8, call), outcome(512, call), float(output.min()), float(output.max())
report(run)
"""
PACK = """
def run():
    small = block(64, 64)
    small.matrix(0, np.ones((64, 64), np.float32))  # starts the threads
    columns = 1_000_000
    writer, weight = block(32, columns), np.ones((32, columns), np.float16)
    call = lambda: writer.matrix(0, weight)
    return outcome(8, call), outcome(512, call)
report(run)
"""


@pytest.mark.parametrize(("code", "function"), [(LINEAR, "share4v_linear"), (PACK, "pack")])
def test_a_kernel_without_memory(code: str, function: str) -> None:
    """The buffers of `linear` belong to the call, those of `pack` to the threads of a parallel region."""
    kind, text = run_limited(PREPARE + code, megabytes=1000)
    assert kind == "value", text
    assert f"{function} got no memory for its intermediate results" in text and "'computed'" in text


THREADS = """
from mindone.models.share4v.kernels.library import ThreadsRefusedError
def run():
    small = block(64, 64)
    call = lambda: small.matrix(0, np.ones((64, 64), np.float32))
    for count in counts:
        kernels.threads = count
        call()
    kernels.threads = 16  # more than have ended in this process, whose stacks would be used again
    try:
        with_memory(1, call)  # less than a thread's stack
    except ThreadsRefusedError as error:
        kernels.threads = 2
        call()
        return str(error), float(small.block.sum()) > 0
report(run)
"""


@pytest.mark.parametrize("counts", [(), (16, 2)])
def test_a_kernel_without_threads(counts: tuple[int, ...]) -> None:
    """OpenMP's library would end the process: "Thread creation failed: Resource temporarily unavailable".

    When fewer threads are needed it ends the others, so that 16 after 16 and 2 are new ones again.
    """
    kind, text = run_limited(f"{PREPARE}counts = {counts}\n{THREADS}", megabytes=1000)
    assert kind == "value", text
    assert "refused to start the 16 threads" in text and "OMP_NUM_THREADS" in text and text.endswith("True)")
