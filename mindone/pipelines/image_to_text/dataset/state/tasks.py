"""Tasks: inputs with their prompts, in a file that other processes read in blocks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .records import Item, Record, dumps
from .regular_files import create_own, open_own


@dataclass(frozen=True)
class Task:
    """An input and its prompts; it gets one caption per prompt.

    Attributes:
        item: the input.
        prompts: the prompts.
        styles: for each prompt, the name of the style that it comes from, or None.
        beginning: text that its captions begin with, if it depends on the input; None: the job's.
        texts: for each prompt, the name of its text; empty if the job has no named texts.
        beginnings: for each prompt of a named text, as `beginning`; None: the text's.
        needs: for each prompt of a named text, the names of the earlier texts that are to be filled in, with all other
            variables of the prompt.
    """

    item: Item
    prompts: tuple[str, ...]
    styles: tuple[str | None, ...]
    beginning: str | None = None
    texts: tuple[str, ...] = ()
    beginnings: tuple[str | None, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()

    def record(self) -> Record:
        """Return the record of the input before it is read."""
        item = self.item
        return Record(item.number, item.key, item.source, prompts=self.prompts, columns=item.columns, texts=self.texts)

    def text_of(self, index: int) -> str:
        """Return the name of a prompt's text; "" if it has none."""
        return self.texts[index] if self.texts else ""

    def beginning_of(self, index: int) -> str | None:
        """Return what the answer to a prompt begins with, if that depends on the input."""
        return self.beginnings[index] if self.beginnings else self.beginning

    def needs_of(self, index: int) -> tuple[str, ...]:
        """Return the names of the texts whose answers a prompt needs."""
        return self.needs[index] if self.needs else ()


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
    return list(map(_from_values, values))


def _from_values(values: dict[str, Any]) -> Task:
    return Task(
        Item(**values["item"]),
        tuple(values["prompts"]),
        tuple(values["styles"]),
        values["beginning"],
        tuple(values["texts"]),
        tuple(values["beginnings"]),
        tuple(map(tuple, values["needs"])),
    )


def _to_line(task: Task) -> str:
    return dumps(asdict(task)) + "\n"
