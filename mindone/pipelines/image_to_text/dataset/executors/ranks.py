"""Which of the processes that `msrun` started this one is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """A process of `msrun`, by the variables of MindSpore's dynamic cluster.

    Attributes:
        number: 0 is the one that leads.
        count: how many there are.
        device: the card that it has on its host.
        is_scheduler: it is there for processes that talk to each other by MindSpore's operators; it has no work here.
    """

    number: int
    count: int
    device: int = 0
    is_scheduler: bool = False


def current_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """Return this process's rank; None where `msrun` did not start it.

    Raises:
        ValueError: `msrun` was not told which host this is, so that two hosts would take the same share.

    Example:
        >>> current_rank({"MS_ROLE": "MS_WORKER", "MS_NODE_ID": "3", "MS_WORKER_NUM": "8", "DEVICE_ID": "3"})
        Rank(number=3, count=8, device=3, is_scheduler=False)
    """
    role, count = environment.get("MS_ROLE"), int(environment.get("MS_WORKER_NUM", "1"))
    if role == "MS_SCHED":
        return Rank(0, count, is_scheduler=True)
    if role != "MS_WORKER":
        return None
    # RANK_ID will not do: where msrun does not know a worker's rank, the worker inherits the scheduler's, which is 0.
    if "MS_NODE_ID" not in environment:
        raise ValueError("msrun gave this process no rank: start it on every host with --node_rank")
    return Rank(int(environment["MS_NODE_ID"]), count, int(environment.get("DEVICE_ID", "0")))


def use_device(rank: Rank) -> None:
    """Let MindSpore work on the rank's card, where there are cards; no model may have been made yet."""
    import mindspore as ms

    target = ms.get_context("device_target")
    if target != "CPU":
        ms.set_device(target, rank.device)
