"""Words and sentences are found, counted and split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ("It costs 3.50. J. R. Smith paid, e.g. in cash.", 2),
        ("狗在跑。猫在睡。", 2),
        ("no end", 1),
        ("", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(split_sentences(text)) == count


def test_words_match_whole_and_lower_case_matches_any_case() -> None:
    assert has_word("The CAT sat", "cat") and has_word("cat's", "cat") and not has_word("concatenate", "cat")
    assert has_word("an Apple logo", "Apple") and not has_word("an apple", "Apple")
    assert has_word("written in C++.", "c++") and has_word("#1 fan", "#1") and not has_word("a#1 fan", "a#")
    assert has_word("a stock\nphoto", "stock photo") and not has_word("stock photos", "stock photo")
    assert has_word("一只黑猫", "猫")
    assert missing_words("a dog", ["cat", "dog", "Dog"]) == ["cat", "Dog"]
    assert count_words("a well-lit room, 3 m wide") == 6 and count_words("黑猫 cat") == 3
