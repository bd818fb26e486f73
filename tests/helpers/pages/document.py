"""Pages of the documentation and the code blocks in them."""

from __future__ import annotations

import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from helpers.paths import ROOT

PAGES = sorted(
    {
        ROOT / "README.md",
        ROOT / "README_CN.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("README.md"),
        *(ROOT / "benchmarks").rglob("README.md"),
    }
)
PYTHON, SHELL, SESSION = "python", "bash", "console"
RUNNABLE = (PYTHON, SHELL, SESSION)
# Blocks that are only shown: the contents of a file, or the output of a program.
SHOWN = ("text", "toml", "json", "csv", "yaml", "nginx")

FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\n`]*)$")
TITLE = re.compile(r'title="([^"]+)"')
MARKER = re.compile(r"<!--\s*not run\b:?\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced code block.

    Attributes:
        language: the word after the fence; "" if there is none.
        text: the code.
        line: number of its first line in the page.
        title: name of a file (`title="towers.py"`): the block is written to it instead of being run.
        reason: why it is not run, from `<!-- not run: ... -->` in front of it; "" if the comment gives no reason.
    """

    language: str
    text: str
    line: int
    title: str | None = None
    reason: str | None = None

    @property
    def is_run(self) -> bool:
        return self.language in RUNNABLE and self.reason is None

    @property
    def code(self) -> str:
        """The text without its comments, which differ between translations."""
        if self.language == PYTHON:
            return _without_python_comments(self.text)
        lines = (re.sub(r"(^|\s)#.*", "", line).rstrip() for line in self.text.splitlines())
        return "\n".join(line for line in lines if line)


def _without_python_comments(text: str) -> str:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    layout = (tokenize.COMMENT, tokenize.NL)
    return " ".join(token.string for token in tokens if token.type not in layout).strip()


def blocks_of(text: str) -> list[Block]:
    """Return the code blocks of a page."""
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            number += 1
            continue
        start = number + 1
        end = next((i for i in range(start, len(lines)) if _closes(lines[i], opening["fence"])), None)
        if end is None:
            raise ValueError(f"the code block in line {start} has no closing fence")
        title = TITLE.search(opening["info"])
        found.append(
            Block(
                language=re.split(r"[\s{]", opening["info"], maxsplit=1)[0],
                text=dedent("\n".join(lines[start:end])) + "\n",
                line=start + 1,
                title=title[1] if title else None,
                reason=_reason_before(lines[:number]),
            )
        )
        number = end + 1
    return found


def _closes(line: str, fence: str) -> bool:
    bare = line.strip()
    return len(bare) >= len(fence) and set(bare) == {fence[0]}


def _reason_before(lines: list[str]) -> str | None:
    """Return the reason in a `not run` comment that is separated from the block only by white space."""
    before = "\n".join(lines).rstrip()
    start = before.rfind("<!--")
    marker = MARKER.fullmatch(before[start:]) if start >= 0 else None
    return marker[1] if marker else None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
