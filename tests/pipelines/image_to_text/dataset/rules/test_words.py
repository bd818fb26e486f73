"""Words and sentences are found, counted and split."""

from __future__ import annotations

import re

import pytest
from helpers.limits import run_limited
from hypothesis import given
from hypothesis import strategies as st

from mindone.pipelines.image_to_text.dataset.rules import words
from mindone.pipelines.image_to_text.dataset.rules.words import count_words, has_word, missing_words, split_sentences


@given(st.text(alphabet=st.sampled_from("ab.!? \n\"'。"), max_size=40))
def test_concatenated_sentences_are_the_text(text: str) -> None:
    assert "".join(split_sentences(text)) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Mr. and Mrs. Fox live at No. 5, St. Louis. They are 3.5 ft. tall.", 2),
        ('He says "Stop!" and waits. "Stop!" She stops. Then?', 4),
        ("One line\nanother line", 2),
        ("One paragraph.\n\nAnother one. It ends.", 3),  # the space between paragraphs is no sentence
        ("It costs 3.50. J. R. Smith paid, e.g. in cash.", 2),
        ("狗在跑。猫在睡。", 2),
        ("no end", 1),
        ("", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(split_sentences(text)) == count


RUN = r"""
from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules, clean
units = (".", "!?", "...", "\"'", " ", ",", "- ", "(", "In this picture, ", "。", "\n")
runs = [(one * 80_000)[:80_000] for one in units]
rules = [TextRules(max_sentences=2), TextRules(as_tags=True), TextRules(strip_openings=True), TextRules(max_words=9)]
report(lambda: sum(bool(clean(f"A cat{run}x", one)) + bool(clean(f"{run}x", one)) for run in runs for one in rules))
"""


def test_a_caption_that_is_one_long_run_takes_linear_time() -> None:
    """Models that end in a loop write such captions: "........"."""
    assert run_limited(RUN) == ("value", "88")


@given(st.text(alphabet=st.sampled_from("ab.!? \n\"')。"), max_size=40))
def test_the_ends_of_sentences_are_those_without_the_look_behind(text: str) -> None:
    plain = words._SENTENCE_END.pattern.removeprefix("(?<![.!?…])")
    assert [one.span() for one in re.finditer(plain, text)] == [
        one.span() for one in words._SENTENCE_END.finditer(text)
    ]


def test_words_match_whole_and_lower_case_matches_any_case() -> None:
    assert has_word("The CAT sat", "cat") and has_word("cat's", "cat") and not has_word("concatenate", "cat")
    assert has_word("an Apple logo", "Apple") and not has_word("an apple", "Apple")
    assert has_word("written in C++.", "c++") and has_word("#1 fan", "#1") and not has_word("a#1 fan", "a#")
    assert has_word("a stock\nphoto", "stock photo") and not has_word("stock photos", "stock photo")
    assert has_word("一只黑猫", "猫")
    assert missing_words("a dog", ["cat", "dog", "Dog"]) == ["cat", "Dog"]
    assert count_words("a well-lit room, 3 m wide") == 6 and count_words("黑猫 cat") == 3
