"""Which question is asked of which picture: prompts with weights, drawn the same way by every run and machine."""

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

from ..state.regular_files import open_input_text
from .styles import STYLES, Style, get_style
from .variables import Described, check_known, fill, variables_of

DEFAULT_STYLE = "default"
_WEIGHTED = re.compile(r"^([^|\t]*?)\s*[|\t]\s*(.*)$")
_LIKE_A_NUMBER = re.compile(r"[-+]?[\d.,]+(?:e[-+]?\d+)?|[-+]?(?:inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """One question of a plan.

    Attributes:
        text: the question, perhaps with variables.
        weight: how often it is drawn, in proportion to the others' weights.
        style: name of the style that it comes from, or None.

    Raises:
        ValueError: the text is empty or has a lone brace, or the weight is not above 0.
    """

    text: str
    weight: float = 1.0
    style: str | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("a prompt is empty: write what to ask of the picture")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"the prompt {self.text!r:.60} has the weight {self.weight!r}: expected a number above 0")
        variables_of(self.text)


@dataclass(frozen=True)
class Question:
    """What one caption of one picture is asked with: the text, variables filled in, and the prompt's style.

    Attributes:
        needs: names of earlier texts of the picture that the text needs; its variables are not filled in then.
    """

    text: str
    style: Style | None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptPlan:
    """The questions of a job.

    Each caption of a picture draws one of the prompts, by weight; a picture's captions have different prompts until
    every prompt has been drawn once. A draw hangs on (seed, key, place) alone, so a job that is resumed, or spread over
    machines, or runs over its inputs in another order draws the same.

    Attributes:
        prompts: the prompts to draw from.
        captions: how many captions a picture gets.
        every: ask every prompt of every picture, in their order, and draw nothing; `captions` is then their number.
        seed: of the draws.

    Raises:
        ValueError: there are no prompts, or `captions` is below 1.

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
                f"every prompt is asked once, which makes {len(self.prompts)} captions, but {self.captions} are wanted"
            )

    @property
    def count(self) -> int:
        """Captions a picture."""
        return len(self.prompts) if self.every else self.captions

    @property
    def repeats(self) -> bool:
        """Whether a picture is asked the same twice, which with greedy decoding gives the same caption twice."""
        return self.count > len({prompt.text for prompt in self.prompts})

    @property
    def styles(self) -> tuple[Style, ...]:
        """The styles that prompts come from, each once."""
        return tuple(STYLES[name] for name in dict.fromkeys(prompt.style for prompt in self.prompts) if name)

    @property
    def variables(self) -> frozenset[str]:
        """Names of the variables in all prompts."""
        return frozenset().union(*(variables_of(prompt.text) for prompt in self.prompts))

    def check(self, columns: Collection[str], allows_absent: bool = False) -> None:
        """Check that inputs with these columns have the variables of all prompts; arguments as in `check_known`.

        Raises:
            VariableError: the message names the known variables.
        """
        check_known([prompt.text for prompt in self.prompts], columns, allows_absent)

    def questions(self, item: Described) -> tuple[Question, ...]:
        """Return what is asked of an input, one question a caption.

        Raises:
            VariableError: the record lacks a variable that has no default.
        """
        return tuple(
            Question(fill(prompt.text, item), STYLES[prompt.style] if prompt.style else None)
            for prompt in self._drawn(item.key)
        )

    def step(self, item: Described, earlier: Collection[str]) -> Question:
        """Return what is asked of an input for one of several named texts.

        Args:
            item: the input.
            earlier: names of the texts that the input has by then, which are variables too.

        Raises:
            VariableError: the record lacks a variable that has no default.
        """
        prompt = self._drawn(item.key)[0]
        style = STYLES[prompt.style] if prompt.style else None
        needs = tuple(sorted(variables_of(prompt.text) & set(earlier)))
        text = fill(prompt.text, item, dict.fromkeys(needs, "-"))  # the other variables are checked now
        return Question(prompt.text if needs else text, style, needs)

    def texts(self, item: Described) -> tuple[str, ...]:
        """Return the questions' texts alone."""
        return tuple(question.text for question in self.questions(item))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values: two plans that ask the same have the same."""
        prompts = [{"text": one.text, "weight": one.weight, "style": one.style} for one in self.prompts]
        return {"prompts": prompts, "captions": self.count, "every": self.every, "seed": self.seed}

    @classmethod
    def from_options(
        cls,
        styles: Sequence[str] = (),
        prompts: Sequence[str] = (),
        files: Sequence[str | Path] = (),
        captions: int = 1,
        every: bool = False,
        seed: int = 0,
    ) -> PromptPlan:
        """Make the plan of a command line: named styles, then prompts, then those of files; all in one pot.

        With none of them the style "default" is asked.

        Raises:
            ValueError: a style is not known, a line of a file cannot be read, or a number is outside its range.
            OSError: a file cannot be read.
        """
        pot = [Prompt(get_style(name).prompt, 1.0, name) for name in styles]
        pot += [Prompt(text) for text in prompts]
        for path in files:
            pot += read_prompt_file(path)
        if not pot:
            pot = [Prompt(STYLES[DEFAULT_STYLE].prompt, 1.0, DEFAULT_STYLE)]
        return cls(tuple(pot), captions, every, seed)

    def _drawn(self, key: str) -> list[Prompt]:
        if self.every:
            return list(self.prompts)
        drawn: list[Prompt] = []
        left: list[Prompt] = []
        for place in range(self.captions):
            left = left or list(self.prompts)
            drawn.append(left.pop(_draw([prompt.weight for prompt in left], self.seed, key, place)))
        return drawn


def read_prompt_file(path: str | Path) -> list[Prompt]:
    r"""Read prompts, one a line.

    A line is a prompt, `@NAME` for a style's, or either behind a weight and a bar: `3 | Describe this image`. A tab
    will do for the bar. Lines that are empty or begin with `#` say nothing; `\n` in a prompt is a line end.

    Raises:
        ValueError: a line cannot be read, or the file has no prompt; the message names file and line.
        OSError: the file cannot be read.
    """
    try:
        with open_input_text(path) as file:
            lines = file.read().splitlines()
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
        raise ValueError(f"{path}: no prompts in it; write one a line")
    return prompts


def _read_line(line: str) -> Prompt:
    weight = 1.0
    found = _WEIGHTED.match(line)
    if found and _LIKE_A_NUMBER.fullmatch(found[1].strip()):
        try:
            weight = float(found[1])
        except ValueError:
            raise ValueError(f"the weight {found[1]!r} is no number: write it as 2.5") from None
        line = found[2].strip()
    if line.startswith("@"):
        style = get_style(line[1:].strip())
        return Prompt(style.prompt, weight, style.name)
    return Prompt(line.replace("\\n", "\n"), weight)


def _draw(weights: Sequence[float], seed: int, key: str, place: int) -> int:
    """Return a number in proportion to the weights.

    A hash, not a generator of random numbers: no version of Python or NumPy changes what it gives.
    """
    digest = hashlib.sha256(f"{seed}\0{place}\0{key}".encode(errors="surrogateescape")).digest()
    reached = list(accumulate(weights))
    mark = int.from_bytes(digest[:8], "big") / 2**64 * reached[-1]
    return min(bisect_right(reached, mark), len(reached) - 1)  # rounding may put the mark on the last border
