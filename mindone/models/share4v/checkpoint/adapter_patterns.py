"""Patterns of module names in adapter_config.json (rank_pattern, alpha_pattern), matched in bounded time.

PEFT matches them with `re`, which a pattern from a stranger's file can keep busy for ever. This matcher follows all
readings of a pattern at once, so that its time is a polynomial in the lengths of both, and counts its steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..configuration_schema import shown
from .errors import CheckpointError

MAX_LENGTH = 512
MAX_DEPTH = 4  # of groups in groups
MAX_REPEATS = 8
MAX_STEPS = 3_000_000  # of one pattern, with all names; a plain one needs some hundred for a name
_NAME = re.compile(r"(?:[\w\-]|\\?\.)+")  # with dots as they are, or escaped
# One character: escaped, of a set, or any other that is no operator.
_ATOM = re.compile(r"\\[.dwDW\-_/]|\[\^?[\w.\-\\]+\]|[^\\\[\](){}|*+?^$]")

# Positions in a name at which a reading of the pattern may stand -> those after the next part.
Step = Callable[[str, frozenset[int]], frozenset[int]]


@dataclass(frozen=True)
class NamePattern:
    """A pattern of module names: a name, the last parts of one, or a simple regular expression for either.

    Attributes:
        text: the pattern, as in the file.
        step: matches it; None if it is a plain name.

    Example:
        >>> from mindone.models.share4v.checkpoint.adapter_patterns import NamePattern
        >>> pattern = NamePattern.parse(r"layers\\.(0|1)\\.self_attn\\.[qk]_proj")
        >>> pattern.matches("model.layers.1.self_attn.q_proj"), pattern.matches("model.layers.11.self_attn.q_proj")
        (True, False)
    """

    text: str
    step: Step | None

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Read a pattern.

        Raises:
            ValueError: it is too long, or uses what is not supported here.
        """
        if not 0 < len(text) <= MAX_LENGTH:
            raise ValueError(f"has a pattern of {len(text)} characters, expected 1 to {MAX_LENGTH}")
        if _NAME.fullmatch(text):
            return cls(text.replace("\\", ""), None)
        parser = _Parser(text)
        step = parser.alternatives(0)
        if parser.position < len(text):
            raise parser.error()
        return cls(text, step)

    def matches(self, name: str) -> bool:
        """Return whether the pattern matches a name, or the parts of one after a dot.

        Raises:
            CheckpointError: this pattern took too many steps, with all names together.
        """
        if self.step is None:
            return name == self.text or name.endswith(f".{self.text}")
        starts = frozenset({0, *(place + 1 for place, character in enumerate(name) if character == ".")})
        return len(name) in self.step(name, starts)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.position, self.repeats = text, 0, 0
        self.steps_left = MAX_STEPS

    def spend(self, steps: int) -> None:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise CheckpointError(
                f"the pattern {shown(self.text)} in adapter_config.json takes more than {MAX_STEPS} steps: write it "
                "with fewer alternatives and repetitions"
            )

    def error(self) -> ValueError:
        return ValueError(
            f"has the pattern {shown(self.text)}, which is not supported from character {self.position} on: expected a "
            "module's name, or a regular expression of letters, ., \\d, \\w, [sets], (groups), |, *, + and ?"
        )

    def alternatives(self, depth: int) -> Step:
        if depth > MAX_DEPTH:
            raise self.error()
        steps = [self.sequence(depth)]
        while self.text[self.position : self.position + 1] == "|":
            self.position += 1
            steps.append(self.sequence(depth))
        if len(steps) == 1:
            return steps[0]

        def any_of(name: str, at: frozenset[int]) -> frozenset[int]:
            self.spend(len(steps))
            return frozenset(place for step in steps for place in step(name, at))

        return any_of

    def sequence(self, depth: int) -> Step:
        steps: list[Step] = []
        while self.position < len(self.text) and self.text[self.position] not in "|)":
            steps.append(self.repeated(depth))
        return lambda name, at: _in_turn(steps, name, at)

    def repeated(self, depth: int) -> Step:
        step = self.single(depth)
        mark = self.text[self.position : self.position + 1]
        if not mark or mark not in "*+?":
            return step
        self.position += 1
        self.repeats += 1
        if self.repeats > MAX_REPEATS or self.text[self.position : self.position + 1] in ("*", "+", "?"):
            raise self.error()
        if mark == "?":
            return lambda name, at: at | step(name, at)
        return lambda name, at: _many(step, name, at if mark == "*" else step(name, at))

    def single(self, depth: int) -> Step:
        first = self.text[self.position]
        if first in "^$":
            self.position += 1
            return lambda name, at: at & {0 if first == "^" else len(name)}
        if first == "(" and self.text[self.position + 1 : self.position + 2] != "?":
            self.position += 1
            step = self.alternatives(depth + 1)
            if self.text[self.position : self.position + 1] != ")":
                raise self.error()
            self.position += 1
            return step
        atom = _ATOM.match(self.text, self.position)
        if atom is None:
            raise self.error()
        try:
            fits = re.compile(atom[0]).fullmatch
        except re.error:
            raise self.error() from None
        self.position = atom.end()

        def one(name: str, at: frozenset[int]) -> frozenset[int]:
            self.spend(len(at) + 1)
            return frozenset(place + 1 for place in at if place < len(name) and fits(name[place]))

        return one


def _in_turn(steps: Iterable[Step], name: str, at: frozenset[int]) -> frozenset[int]:
    for step in steps:
        if not at:
            break
        at = step(name, at)
    return at


def _many(step: Step, name: str, at: frozenset[int]) -> frozenset[int]:
    """Return the positions after any number of steps; each position is followed once."""
    found = new = at
    while new:
        new = step(name, new) - found
        found |= new
    return found
