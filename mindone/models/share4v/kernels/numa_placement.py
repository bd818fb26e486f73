"""Where the weights of the kernels lie on a machine with several NUMA nodes, such as sockets with memory of their own.

Pages of a file belong to the node of the process that read them first, and no call of the system moves them for another
one. So weights are placed by a copy in memory whose pages follow a policy (mbind(2)).
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cpu_cores import ROOT, memory_nodes, nodes_with_memory, usable_cores
from .component import KernelComponent
from .packing import anonymous_memory

# How weights can be placed -> the policy's number in <linux/mempolicy.h>. Preferred memory, unlike bound memory, comes
# from another node if this one has none left.
POLICIES = {"interleave": 3, "local": 1}
_MBIND = {"x86_64": 237, "aarch64": 235}  # number of the system call
_WORD = 64  # bits of an unsigned long
_log = logging.getLogger(__name__)


class PlacementError(OSError):
    """The system does not place memory on NUMA nodes; the message says why and what to do."""


def check_placement(numa: str | None) -> None:
    """Check the name of a placement.

    Raises:
        ValueError: it is unknown.
    """
    if numa is not None and numa not in POLICIES:
        raise ValueError(f"numa {numa!r} is not supported: use one of {', '.join(POLICIES)}, or leave numa out")


def weight_nodes(numa: str | None, root: Path = ROOT) -> tuple[int, ...]:
    """Return the NUMA nodes on which this process's weights are to lie; none if only one of the machine has memory.

    Args:
        numa: "interleave", "local", or None: where the system puts them.
        root: where `sys` and `proc` are mounted.

    Raises:
        ValueError: the name is unknown, or "local" means several nodes.
    """
    check_placement(numa)
    if numa is None:
        return ()
    nodes = memory_nodes(usable_cores(root=root), root)
    if numa == "local" and len(nodes) > 1:
        raise ValueError(
            f"numa 'local' puts the weights on one NUMA node, but this process runs on the nodes {_listed(nodes)}: pin "
            f"it to one (numactl --cpunodebind={nodes[0]}), caption with a replica for each (share4v caption-dataset "
            "--replicas), or use numa 'interleave'"
        )
    return nodes if len(nodes_with_memory(root)) > 1 else ()


def place_weights(components: Iterable[Any], numa: str | None, root: Path = ROOT) -> bool:
    """Replace the blocks of components on the kernels by copies on the nodes of `weight_nodes`, one after the other.

    Returns whether they are copies now.

    Raises:
        ValueError: as `weight_nodes`.
        PlacementError: the system refused.
    """
    if numa is None:
        return False
    nodes = weight_nodes(numa, root)
    if not nodes:
        _log.warning("numa (--numa) %r has no effect: only one NUMA node of this machine has memory", numa)
        return False
    for component in components:
        if isinstance(component, KernelComponent):
            for name in component.names:
                component.put(name, placed(component.array(name), numa, nodes))
    return True


def placed(block: np.ndarray, numa: str, nodes: Sequence[int]) -> np.ndarray:
    """Return a copy of a block, uint8 [bytes], whose pages alternate over the nodes or lie on the first one.

    Raises:
        PlacementError: the system refused.
    """
    memory = anonymous_memory(block.size)
    _bind(memory, numa, nodes)
    memory[:] = block
    return memory


def _bind(memory: np.ndarray, numa: str, nodes: Sequence[int]) -> None:
    number = _MBIND.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        raise PlacementError("numa (--numa) needs Linux on x86-64 or aarch64: leave it out")
    words = max(nodes) // _WORD + 1
    mask = (ctypes.c_ulong * words)()
    for node in nodes:
        mask[node // _WORD] |= 1 << node % _WORD
    system = ctypes.CDLL(None, use_errno=True).syscall
    system.restype = ctypes.c_long
    # The system reads one bit less than it is told.
    arguments = ctypes.c_void_p(memory.ctypes.data), ctypes.c_ulong(memory.size), ctypes.c_long(POLICIES[numa])
    if system(ctypes.c_long(number), *arguments, mask, ctypes.c_ulong(words * _WORD + 1), ctypes.c_uint(0)):
        reason = os.strerror(ctypes.get_errno())
        raise PlacementError(
            f"numa (--numa) {numa!r}: the system refused to place memory on NUMA nodes ({_listed(nodes)}): {reason}. "
            "In a container, allow the system call mbind (docker run --cap-add SYS_NICE); otherwise leave numa out"
        )


def _listed(nodes: Sequence[int]) -> str:
    return ", ".join(map(str, nodes))
