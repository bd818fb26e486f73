"""PromptPlan: which prompts each input gets, drawn by weight in the same way in every run and on every machine."""

from __future__ import annotations

import hashlib
import math
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..state.records import Item
from ..state.tasks import Task
from .styles import STYLES, Style, get_style
from .variables import Described, check_known, fill, variables_of

DEFAULT_STYLE = "default"
_WEIGHTED = re.compile(r"^([^|\t]*?)\s*[|\t]\s*(.*)$")
_NUMBER_LIKE = re.compile(r"[-+]?[\d.,]+(?:e[-+]?\d+)?|[-+]?(?:inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """One prompt of a plan.

    Attributes:
        text: the prompt, which may contain variables.
        weight: relative probability of being drawn.
        style: name of the style that it comes from, or None.

    Raises:
        ValueError: the text is empty or has an unpaired brace, or the weight is not a positive number.
    """

    text: str
    weight: float = 1.0
    style: str | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("a prompt is empty: write a question or an instruction about the image")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"the prompt {self.text!r:.60} has the weight {self.weight!r}: expected a number above 0")
        variables_of(self.text)


@dataclass(frozen=True)
class PromptPlan:
    """The prompts of a job.

    For each caption of an input, one of the prompts is drawn by weight, without replacement until all have been drawn.
    A draw depends only on the seed, the input's key and the caption's index, so it is the same if the job is resumed,
    distributed, or lists its inputs in another order.

    Attributes:
        prompts: the prompts to draw from.
        captions: number of captions per input.
        every: use all prompts for every input, in order, instead of drawing; `captions` must then be 1 or their number.
        seed: of the draws.

    Raises:
        ValueError: there are no prompts, `captions` is less than 1, or it contradicts `every`.

    Example:
        >>> from types import SimpleNamespace
        >>> plan = PromptPlan((Prompt("What is {stem}?"),))
        >>> plan.texts(SimpleNamespace(key="cats/tom", source="cats/tom.jpg", columns={}))
        ('What is tom?',)
    """

    prompts: tuple[Prompt, ...]
    captions: int = 1
    every: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("there is no prompt: give a style, a prompt or a prompt file")
        if self.captions < 1:
            raise ValueError(f"captions must be 1 or more, got {self.captions}")
        if self.every and self.captions not in (1, len(self.prompts)):
            raise ValueError(
                f"every prompt is asked once, which makes {len(self.prompts)} captions, but captions is {self.captions}"
            )

    @property
    def count(self) -> int:
        """Number of captions per input."""
        return len(self.prompts) if self.every else self.captions

    @property
    def repeats(self) -> bool:
        """Whether an input gets the same prompt twice; with greedy decoding, the two captions are equal."""
        return self.count > len({prompt.text for prompt in self.prompts})

    @property
    def styles(self) -> tuple[Style, ...]:
        """The styles that prompts come from, without duplicates."""
        return tuple(STYLES[name] for name in dict.fromkeys(prompt.style for prompt in self.prompts) if name)

    @property
    def variables(self) -> frozenset[str]:
        """Names of the variables in all prompts."""
        return frozenset().union(*(variables_of(prompt.text) for prompt in self.prompts))

    def check(self, columns: Collection[str]) -> None:
        """Check that the variables of all prompts exist in a table with these columns.

        Raises:
            VariableError: one does not exist; the message lists the known variables.
        """
        check_known([prompt.text for prompt in self.prompts], columns)

    def task(self, item: Item) -> Task:
        """Return an input with its prompts, one per caption, and their styles.

        Raises:
            VariableError: a variable without default has no value in this input.
        """
        prompts = self._draw_prompts(item.key)
        return Task(item, tuple(fill(prompt.text, item) for prompt in prompts), tuple(one.style for one in prompts))

    def texts(self, item: Described) -> tuple[str, ...]:
        """Return the prompts of an input as texts, one per caption; errors as in `task`."""
        return tuple(fill(prompt.text, item) for prompt in self._draw_prompts(item.key))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values; plans with equal results have equal values."""
        prompts = [{"text": one.text, "weight": one.weight, "style": one.style} for one in self.prompts]
        return {"prompts": prompts, "captions": self.count, "every": self.every, "seed": self.seed}

    @classmethod
    def from_options(
        cls,
        *,
        styles: Sequence[str] = (),
        prompts: Sequence[str] = (),
        files: Sequence[str | Path] = (),
        captions: int = 1,
        every: bool = False,
        seed: int = 0,
    ) -> PromptPlan:
        """Make a plan of named styles, prompts, and files of prompts together; without any, of the style "default".

        Args:
            styles: names of styles.
            prompts: prompts without a style, each with weight 1.
            files: files for `read_prompt_file`.
            captions, every, seed: as in the class.

        Raises:
            ValueError: a style is unknown, a file has a malformed line, or a number is out of range.
            OSError: a file cannot be read.
        """
        collected = [Prompt(get_style(name).prompt, 1.0, name) for name in styles]
        collected += [Prompt(text) for text in prompts]
        for path in files:
            collected += read_prompt_file(path)
        if not collected:
            collected = [Prompt(STYLES[DEFAULT_STYLE].prompt, 1.0, DEFAULT_STYLE)]
        return cls(tuple(collected), captions, every, seed)

    def _draw_prompts(self, key: str) -> list[Prompt]:
        if self.every:
            return list(self.prompts)
        drawn: list[Prompt] = []
        remaining: list[Prompt] = []
        for index in range(self.captions):
            remaining = remaining or list(self.prompts)
            drawn.append(remaining.pop(_draw([prompt.weight for prompt in remaining], self.seed, key, index)))
        return drawn


def read_prompt_file(path: str | Path) -> list[Prompt]:
    r"""Read a file of prompts, one per line.

    A line is a prompt, or `@NAME` for the prompt of a style, optionally after a weight and a bar or a tab:
    `3 | Describe this image`. Empty lines and lines that start with `#` are ignored; `\n` in a prompt is a line break.

    Raises:
        ValueError: a line is malformed, or the file has no prompts; the message names the file and the line.
        OSError: the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text, at byte {error.start}: save it as UTF-8") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            prompts.append(_read_line(line.strip()))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not prompts:
        raise ValueError(f"{path}: the file has no prompts; write one per line")
    return prompts


def _read_line(line: str) -> Prompt:
    weight = 1.0
    found = _WEIGHTED.match(line)
    if found and _NUMBER_LIKE.fullmatch(found[1].strip()):
        try:
            weight = float(found[1])
        except ValueError:
            raise ValueError(f"the weight {found[1]!r} is not a number: write it as 2.5") from None
        line = found[2].strip()
    if line.startswith("@"):
        style = get_style(line[1:].strip())
        return Prompt(style.prompt, weight, style.name)
    return Prompt(line.replace("\\n", "\n"), weight)


def _draw(weights: Sequence[float], seed: int, key: str, index: int) -> int:
    """Draw an index with probability proportional to its weight.

    Randomness comes from a hash, because its result, unlike a random generator's, is the same in all versions of Python
    and NumPy.
    """
    digest = hashlib.sha256(f"{seed}\0{index}\0{key}".encode(errors="surrogateescape")).digest()
    cumulative = list(accumulate(weights))
    point = int.from_bytes(digest[:8], "big") / 2**64 * cumulative[-1]
    return min(bisect_right(cumulative, point), len(cumulative) - 1)  # rounding may make `point` equal to the total
