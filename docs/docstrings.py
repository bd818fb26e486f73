"""How this project's docstrings are put into the form that griffe's Google style knows."""

from __future__ import annotations

import re
from typing import Any

import griffe

TITLES = {"Example:": "Examples:"}  # whose `>>>` lines are shown as code
LISTS = ("Args:", "Raises:")
JOINT = re.compile(r"(    )(\w+(?:, \w+)+): (.+)")


class DocstringForm(griffe.Extension):
    """Renames sections, and lets each of several names that share a line (`a, b: ...`) have its own."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(_lines(obj.docstring.value.split("\n")))


def _lines(lines: list[str]) -> list[str]:
    out: list[str] = []
    section = ""
    number = 0
    while number < len(lines):
        line = lines[number]
        if line and not line.startswith(" "):
            section = line
        joint = JOINT.fullmatch(line) if section in LISTS else None
        number += 1
        if joint is None:
            out.append(TITLES.get(line, line))
            continue
        rest = []
        while number < len(lines) and lines[number].startswith(" " * 8):
            rest.append(lines[number])
            number += 1
        for name in joint[2].split(", "):
            out += [f"{joint[1]}{name}: {joint[3]}", *rest]
    return out
