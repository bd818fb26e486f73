"""Which of the processes started by `msrun` the current one is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """A process started by `msrun`, described by the environment variables of MindSpore's dynamic cluster.

    Attributes:
        number: rank of the process; rank 0 is the leader.
        count: number of worker processes.
        device: device id of its accelerator on its host.
        is_scheduler: the process only coordinates MindSpore's collective operators; it does no captioning.
    """

    number: int
    count: int
    device: int = 0
    is_scheduler: bool = False


def current_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """Return the rank of this process, or None if `msrun` did not start it.

    Raises:
        ValueError: `msrun` was started without `--node_rank`, so ranks on two hosts could not be told apart.

    Example:
        >>> current_rank({"MS_ROLE": "MS_WORKER", "MS_NODE_ID": "3", "MS_WORKER_NUM": "8", "DEVICE_ID": "3"})
        Rank(number=3, count=8, device=3, is_scheduler=False)
    """
    role, count = environment.get("MS_ROLE"), int(environment.get("MS_WORKER_NUM", "1"))
    if role == "MS_SCHED":
        return Rank(0, count, is_scheduler=True)
    if role != "MS_WORKER":
        return None
    # RANK_ID is not reliable: if msrun does not know a worker's rank, the worker inherits the scheduler's RANK_ID of 0.
    if "MS_NODE_ID" not in environment:
        raise ValueError("msrun gave this process no rank: start msrun with --node_rank on every host")
    return Rank(int(environment["MS_NODE_ID"]), count, int(environment.get("DEVICE_ID", "0")))


def use_device(rank: Rank) -> None:
    """Select the rank's accelerator in MindSpore, if there is one; call it before a model is built."""
    import mindspore as ms

    target = ms.get_context("device_target")
    if target != "CPU":
        ms.set_device(target, rank.device)
