"""The engines: what turns tasks into records, in this process, on a cluster, or on all cards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from ..inference.caption_cache import cache_name
from ..options import CaptioningSettings, ModelChoice
from ..state.records import Record
from ..state.tasks import Task

# Name on the command line -> "module:class".
ENGINES = {
    "local": "mindone.pipelines.image_to_text.dataset.executors.base:LocalEngine",
    "ray": "mindone.pipelines.image_to_text.dataset.executors.ray_executor:RayEngine",
    "msrun": "mindone.pipelines.image_to_text.dataset.executors.msrun_leader:MsrunEngine",
}


@dataclass(frozen=True)
class EngineOptions:
    """What a cluster is asked for; one process needs none of it.

    Attributes:
        actors: how many models work at once.
        cpus: that each of them has.
        block: inputs that an actor of Ray takes at a time.
    """

    actors: int = 1
    cpus: int = 1
    block: int = 64

    def __post_init__(self) -> None:
        for name in ("actors", "cpus", "block"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


class Engine(Protocol):
    """What turns tasks into records; `state` is the job's directory."""

    def __init__(
        self, choice: ModelChoice, settings: CaptioningSettings, options: EngineOptions, state: Path
    ) -> None: ...

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield a record for every task, in any order; tasks are read as they are needed."""


class LocalEngine:
    """One model in this process."""

    def __init__(self, choice: ModelChoice, settings: CaptioningSettings, options: EngineOptions, state: Path) -> None:
        from ..inference.captioner import make_captioner

        self.captioner = make_captioner(choice, settings, state / cache_name())

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield records in the order in which they are done."""
        return self.captioner.run(tasks)


def engine_class(name: str) -> type[Engine]:
    """Return the engine of that name.

    Raises:
        ValueError: the name is not known.
        ImportError: what it needs is not installed; the message names the extra.
    """
    if name not in ENGINES:
        raise ValueError(f"engine {name!r} is not known: expected one of {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    found: type[Engine] = getattr(import_module(module), attribute)
    return found
