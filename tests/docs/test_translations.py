"""The Chinese pages match the English ones: the same sections, commands, tables, numbers and links."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.pages.document import ROOT, Block, blocks_of

PAIRS = {"README.md": "README_CN.md", "docs/quick_start.md": "docs/quick_start.zh.md"}
NUMBER = re.compile(r"(?<![A-Za-z0-9_.,-])\d+(?:[.,]\d+)*(?:e-?\d+)?")
CODE = re.compile(r"`[^`\n]+`")
TRANSLATED = {ours: theirs for pair in PAIRS.items() for ours, theirs in (pair, pair[::-1])}


class Page:
    """The parts of a page that can be compared without understanding the language."""

    def __init__(self, name: str) -> None:
        self.text = (ROOT / name).read_text(encoding="utf-8")
        self.blocks: list[Block] = blocks_of(self.text)
        prose = re.sub(r"^```.*?^```", "", self.text, flags=re.DOTALL | re.MULTILINE)
        self.sections = re.split(r"^## .*$", prose, flags=re.MULTILINE)

    def rows(self) -> list[list[str]]:
        """The rows of all tables, in order."""
        lines = [line for line in self.text.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(params=PAIRS, ids=PAIRS.values())
def pair(request: pytest.FixtureRequest) -> tuple[Page, Page]:
    return Page(request.param), Page(PAIRS[request.param])


def numbers(text: str) -> Counter[str]:
    return Counter(NUMBER.findall(text))


def test_sections_are_the_same(pair: tuple[Page, Page]) -> None:
    assert len(pair[0].sections) == len(pair[1].sections) > 4


def test_code_is_the_same_except_for_comments(pair: tuple[Page, Page]) -> None:
    ours, theirs = ([(block.language, block.code, block.reason) for block in page.blocks] for page in pair)
    assert ours == theirs and ours


def test_numbers_are_the_same_in_every_section(pair: tuple[Page, Page]) -> None:
    for ours, theirs in zip(pair[0].sections, pair[1].sections, strict=True):
        assert numbers(ours) == numbers(theirs)


def test_names_in_code_font_are_the_same_in_every_section(pair: tuple[Page, Page]) -> None:
    for ours, theirs in zip(pair[0].sections, pair[1].sections, strict=True):
        assert Counter(CODE.findall(ours)) == Counter(CODE.findall(theirs))


def test_tables_have_the_same_cells(pair: tuple[Page, Page]) -> None:
    ours, theirs = pair[0].rows(), pair[1].rows()
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        for cell, translated in zip(row, other, strict=True):
            assert numbers(cell) == numbers(translated), f"{cell} | {translated}"
            assert CODE.findall(cell) == CODE.findall(translated), f"{cell} | {translated}"
            assert ("**" in cell) == ("**" in translated), f"{cell} | {translated}"


@pytest.mark.parametrize("name", PAIRS)
def test_links_are_the_same_except_to_translated_pages(name: str) -> None:
    ours, theirs = (Counter(links(page)) for page in (name, PAIRS[name]))
    del ours[PAIRS[name]], theirs[name]
    assert Counter(PAIRS.get(target, target) for target in ours.elements()) == theirs


def links(name: str) -> list[str]:
    """The targets of a page's links, as paths relative to the repository's root."""
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    return [item if "://" in item else os.path.normpath(Path(name).parent / item) for item in targets]


def test_the_pages_link_to_each_other() -> None:
    for name, other in TRANSLATED.items():
        assert f"({Path(other).name})" in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAIRS.values())
def test_the_translation_is_chinese(name: str) -> None:
    text = re.sub(r"(?s:^```.*?^```)|^> .*$", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 300
    broken = [line for line in text.splitlines() if re.search(r"[\u4e00-\u9fff][,:;?!]", line)]
    assert not broken, f"ASCII punctuation after a Chinese character: {broken}"


def test_numbers_are_found_in_both_languages() -> None:
    assert numbers("within 5e-4, 64 ids, 98.8 %, 1,024 tokens, `sharegpt4v-7b`, MindSpore 2.10.0.") == Counter(
        {"5e-4": 1, "64": 1, "98.8": 1, "1,024": 1, "2.10.0": 1}
    )
    assert numbers("误差在5e-4以内，64个 id") == numbers("5e-4, 64")
