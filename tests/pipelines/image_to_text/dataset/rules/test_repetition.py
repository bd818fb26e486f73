"""Degenerate repetition is detected in token ids and text, and ordinary captions have none."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.paths import TINY_SCRIPTS
from hypothesis import given
from hypothesis import strategies as st

from mindone.models.share4v import AutoProcessor
from mindone.pipelines.image_to_text.dataset.rules.repetition import find_repetition
from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules, violations


def has_repetition(items: list[int], min_length: int) -> bool:
    """Test the definition by brute force."""
    for start in range(len(items)):
        for period in range(1, len(items) // 3 + 1):
            needed = max(min_length, period * (5 if period < 8 else 3))
            if start + needed > len(items):
                continue
            if all(items[index] == items[index + period] for index in range(start, start + needed - period)):
                return True
    return False


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.integers(1, 12),
    st.lists(st.integers(0, 5), max_size=12),
    st.lists(st.integers(0, 5), max_size=12),
)
def test_repetition_in_ids_matches_the_definition(
    unit: list[int], times: int, head: list[int], tail: list[int]
) -> None:
    ids = head + unit * times + tail
    found = find_repetition(ids)
    assert (found is not None) == has_repetition(ids, 24)
    if found:
        length = round(found.period * found.repeats)
        run = ids[found.start : found.start + length]
        assert length >= 24 and run[found.period :] == run[: -found.period]
        assert found.unit == " ".join(map(str, run[: found.period]))


@pytest.mark.parametrize(
    "text",
    [
        "A shelf. " + "There is a book to the left of the book. " * 3,
        "A crowd: " + "a man and a woman, " * 5 + "and so on",
        "very " * 16,
        "A sign reads " + "HA" * 60,
        "天空是蓝色的，" * 20,
        "The dog is very happy. It runs. The dog is very happy. It sits. The dog is very happy. It barks.",
        "Before " + " ".join(f"word{number}" for number in range(30)) + " one two three four five six" * 5 + " after.",
    ],
)
def test_repetition_in_text(text: str) -> None:
    assert find_repetition(text) is not None and "repetition: " in violations(text, TextRules())[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A dog.",
        "In the top left there are four small blue stars. In the bottom left there are two small yellow squares. In "
        "the bottom right there are four small blue circles.",
        "A man in a red shirt stands beside a man in a blue shirt, beside a man in a green shirt, beside a man in a "
        "red shirt. Behind them stand a woman in a red dress, a woman in a blue dress and a woman in a green dress.",
        "From left to right: red, blue, red, blue, red, blue, red.",
        "The neon sign says 'ha ha ha ha ha'. Below it, bottles stand in a row: green, green, green, brown, green.",
        "It is red. It is red. It is red.",
        "One cup stands on the left. One cup stands on the right. One plate stands on the left. One plate lies behind.",
        "The scoreboard shows 0 0 0 1 0 0 2 0 0. The clock shows 10:10.",
        "Table of contents ........................ 3\nIndex ........................ 9",
    ],
)
def test_ordinary_captions_have_no_repetition(text: str) -> None:
    assert find_repetition(text) is None


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """The modules that render scenes and write their captions."""
    monkeypatch.syspath_prepend(str(TINY_SCRIPTS))
    yield importlib.import_module("scenes"), importlib.import_module("captions")
    for name in ("scenes", "captions"):
        sys.modules.pop(name, None)


def test_correct_captions_of_scenes_have_no_repetition(tiny: tuple[Any, Any]) -> None:
    scenes, captions = tiny
    tokenizer = AutoProcessor.from_pretrained("sharegpt4v-tiny").tokenizer
    for number in range(1500):
        scene = scenes.sample_scene(scenes.scene_rng(5, number))
        for form in captions.FORMS:
            text = form(scene)
            assert find_repetition(text) is None and find_repetition(tokenizer.encode(text)) is None, text


def test_repetition_in_the_ids_of_a_caption_can_be_removed() -> None:
    tokenizer = AutoProcessor.from_pretrained("sharegpt4v-tiny").tokenizer
    text = "The background is white. " + "In the top left there are two red stars. " * 4 + "The end."
    ids = tokenizer.encode(text)
    found = find_repetition(ids)
    assert found is not None and found.repeats >= 3
    once = tokenizer.decode(ids[: found.start + found.period])
    assert once.count("two red stars") == 1 and find_repetition(once) is None


def test_the_time_for_a_long_caption_is_not_quadratic() -> None:
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdefgh", k=4)) for _ in range(100_000))
    assert find_repetition(text) is None  # in quadratic time this would take an hour
