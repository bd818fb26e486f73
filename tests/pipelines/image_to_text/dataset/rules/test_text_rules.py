"""Text rules: cleaning captions, and describing the rules that they break."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules, clean, violations


def test_long_captions_lose_whole_sentences() -> None:
    text = "A dog runs. It is brown. It barks loudly at a cat."
    assert clean(text, TextRules(max_words=6)) == "A dog runs. It is brown."
    assert clean(text, TextRules(max_sentences=1)) == "A dog runs."
    assert clean(text, TextRules(max_words=2)) == "A dog runs."
    assert violations(clean(text, TextRules(max_words=2)), TextRules(max_words=2)) == ("3 words, at most 2 allowed",)
    assert clean("cat, dog, red bird, sea", TextRules(as_tags=True, max_words=4)) == "cat, dog, red bird"


@given(st.text(max_size=60), st.integers(1, 5), st.integers(1, 8), st.booleans(), st.booleans())
def test_cleaning_never_empties_a_caption(text: str, sentences: int, max_words: int, tags: bool, strip: bool) -> None:
    rules = TextRules(strip_openings=strip, as_tags=tags, max_sentences=sentences, max_words=max_words)
    cleaned = clean(text, rules)
    assert bool(cleaned) == bool(text.strip())
    assert cleaned == cleaned.strip()


def test_tags_are_normalized() -> None:
    rules = TextRules(as_tags=True, strip_openings=True)
    assert clean("Tags: Cat, 'black cat', CAT, sofa, and sunlight.", rules) == "cat, black cat, sofa, sunlight"
    assert clean("1. cat\n2. sofa\n- 3 dogs\n* #sun", rules) == "cat, sofa, 3 dogs, sun"
    assert clean("!!!", rules) == "!!!"


def test_violations_are_described() -> None:
    rules = TextRules(min_words=4, required_words=("cat",), forbidden_words=("stock photo",))
    assert violations("a Stock photo", rules) == (
        "3 words, at least 4 required",
        "required word missing: cat",
        "forbidden word: stock photo",
    )
    assert violations("A cat on a sofa", rules) == () and violations("", TextRules()) == ("empty",)
    assert violations("fine text", TextRules(), [5] * 30)[0].startswith("repetition: '5' 30 times")
    assert violations("fine text", TextRules(refuse_loops=False), [5] * 30) == ()


def test_rules_of_a_style_and_of_a_user_are_combined() -> None:
    style = TextRules(strip_openings=True, max_sentences=1, required_words=("cat",))
    user = TextRules(min_words=3, max_sentences=2, required_words=("dog", "cat"))
    assert style.combine(user) == TextRules(
        strip_openings=True, max_sentences=2, min_words=3, required_words=("cat", "dog")
    )
    assert style.combine(TextRules()) == style


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_words": 0}, "max_words must be 1 or more, got 0"),
        ({"min_words": 5, "max_words": 4}, "min_words 5 is more than max_words 4"),
        ({"required_words": (" ",)}, "required_words contains an empty word"),
        ({"required_words": ("a",), "forbidden_words": ("a",)}, "'a' is both required and forbidden"),
    ],
)
def test_invalid_rules_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextRules(**options)
