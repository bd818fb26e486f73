"""The Executor interface, and the table of executors by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol

from ..options import CaptioningSettings, ExecutorOptions, ModelChoice
from ..state.records import Record
from ..state.tasks import Task

# Value of `engine` (`--engine`) -> "module:class"; the module is imported when the executor is used.
EXECUTORS = {
    "local": "mindone.pipelines.image_to_text.dataset.executors.local:LocalExecutor",
    "ray": "mindone.pipelines.image_to_text.dataset.executors.ray_executor:RayExecutor",
    "replicas": "mindone.pipelines.image_to_text.dataset.executors.replicas:ReplicasExecutor",
    "http": "mindone.pipelines.image_to_text.dataset.executors.http_executor:HttpExecutor",
    "msrun": "mindone.pipelines.image_to_text.dataset.executors.msrun_leader:MsrunLeader",
}


class Executor(Protocol):
    """Turns tasks into records.

    Args:
        choice: the model to load.
        settings: how captions are generated.
        options: the resources to use; an executor in one process ignores them.
        state: the job's state directory.
    """

    def __init__(
        self, *, choice: ModelChoice, settings: CaptioningSettings, options: ExecutorOptions, state: Path
    ) -> None: ...

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield one record per task, in any order; tasks are consumed lazily."""


def executor_class(name: str) -> type[Executor]:
    """Import and return the executor class for a value of `engine`.

    Raises:
        ValueError: the name is unknown.
        ImportError: a package that the executor needs is not installed; the message names the extra to install.
    """
    if name not in EXECUTORS:
        raise ValueError(f"unknown engine {name!r}; use one of {', '.join(EXECUTORS)}")
    module, _, attribute = EXECUTORS[name].partition(":")
    found: type[Executor] = getattr(import_module(module), attribute)
    return found
