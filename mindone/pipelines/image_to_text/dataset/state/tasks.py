"""Tasks: inputs with their prompts, in a file that other processes read in blocks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from .records import Item, dumps
from .regular_files import create_own, open_own


@dataclass(frozen=True)
class Task:
    """An input and its prompts; it gets one caption per prompt.

    Attributes:
        item: the input.
        prompts: the prompts.
        styles: for each prompt, the name of the style that it comes from, or None.
        beginning: text that its captions begin with, if it depends on the input; None: the job's.
    """

    item: Item
    prompts: tuple[str, ...]
    styles: tuple[str | None, ...]
    beginning: str | None = None


@dataclass(frozen=True)
class Block:
    """Consecutive tasks of a file that one process takes together.

    Attributes:
        start: byte offset of the first task.
        count: number of tasks.
    """

    start: int
    count: int


def write_tasks(path: Path, tasks: Iterable[Task], block_size: int) -> list[Block]:
    """Write tasks to a file, and return its blocks of `block_size` tasks; the last block may have fewer.

    Raises:
        OSError: the file cannot be written.
    """
    blocks = []
    remaining = iter(tasks)
    with create_own(path) as file:
        os.fchmod(file.fileno(), 0o600)  # the locators may contain passwords of URLs
        while taken := list(islice(remaining, block_size)):
            blocks.append(Block(file.tell(), len(taken)))
            for task in taken:
                file.write(_to_line(task).encode("utf-8", "surrogatepass"))
        file.flush()
        os.fsync(file.fileno())
    return blocks


def read_tasks(path: Path, block: Block) -> list[Task]:
    """Read the tasks of a block."""
    with open_own(path) as file:
        file.seek(block.start)
        values = [json.loads(file.readline()) for _ in range(block.count)]
    return [
        Task(Item(**value["item"]), tuple(value["prompts"]), tuple(value["styles"]), value["beginning"])
        for value in values
    ]


def _to_line(task: Task) -> str:
    values = {"prompts": task.prompts, "styles": task.styles, "beginning": task.beginning}
    return dumps({"item": asdict(task.item), **values}) + "\n"
