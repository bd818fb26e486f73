"""Tasks: inputs with what is asked about them, as lines that another process reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
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


@dataclass(frozen=True)
class Block:
    """Tasks that one process takes at a time: lines of a file.

    Attributes:
        start: byte at which they begin.
        count: how many they are.
    """

    start: int
    count: int


def write_tasks(path: Path, tasks: Iterable[Task], block: int) -> list[Block]:
    """Write tasks where other processes find them; return the blocks, `block` tasks each, the last perhaps fewer.

    Raises:
        OSError: the file cannot be written.
    """
    blocks, remaining = [], iter(tasks)
    with path.open("wb") as file:
        while taken := list(islice(remaining, block)):
            blocks.append(Block(file.tell(), len(taken)))
            for task in taken:
                file.write(_to_line(task).encode("utf-8", "surrogatepass"))
        file.flush()
        os.fsync(file.fileno())
    return blocks


def read_tasks(path: Path, block: Block) -> list[Task]:
    """Read the tasks of a block."""
    with path.open("rb") as file:
        file.seek(block.start)
        values = [json.loads(file.readline()) for _ in range(block.count)]
    return [Task(Item(**value["item"]), tuple(value["prompts"]), tuple(value["styles"])) for value in values]


def _to_line(task: Task) -> str:
    return dumps({"item": asdict(task.item), "prompts": task.prompts, "styles": task.styles}) + "\n"
