"""Tasks: inputs with what is asked about them, as lines that another process reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .records import Item, dumps


@dataclass(frozen=True)
class Task:
    """An input and its questions, a caption for each.

    Attributes:
        item: the input.
        prompts: the questions.
        styles: for each question the name of the style it comes from, or None.
    """

    item: Item
    prompts: tuple[str, ...]
    styles: tuple[str | None, ...]


def task_to_line(task: Task) -> str:
    """Return a task as one line of JSON, its line end included."""
    return dumps({"item": asdict(task.item), "prompts": task.prompts, "styles": task.styles}) + "\n"


def read_tasks(path: Path, offset: int, count: int) -> list[Task]:
    """Read `count` tasks from the byte `offset` of a file of such lines on."""
    with path.open("rb") as file:
        file.seek(offset)
        values = [json.loads(file.readline()) for _ in range(count)]
    return [Task(Item(**value["item"]), tuple(value["prompts"]), tuple(value["styles"])) for value in values]
