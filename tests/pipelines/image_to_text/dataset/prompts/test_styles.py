"""The named styles: each can be asked, none leaves its captions with the openings that it forbids."""

from __future__ import annotations

import pytest

from mindone.pipelines.image_to_text.dataset.prompts.plan import Prompt
from mindone.pipelines.image_to_text.dataset.prompts.styles import STYLES, Style, get_style
from mindone.pipelines.image_to_text.dataset.prompts.variables import variables_of
from mindone.pipelines.image_to_text.dataset.rules.text_rules import clean

ALL = pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))


def test_what_the_issue_asks_for_is_there() -> None:
    assert len(STYLES) >= 10
    assert {"one-sentence", "exhaustive", "tags", "direct", "text-to-video", "product", "ocr"} <= set(STYLES)
    assert len({style.prompt for style in STYLES.values()}) == len(STYLES)


@ALL
def test_a_style_is_a_question_that_a_template_can_take(style: Style) -> None:
    assert get_style(style.name) is style
    assert Prompt(style.prompt).text == style.prompt == style.prompt.strip()
    assert variables_of(style.prompt) == frozenset() and "<image>" not in style.prompt
    assert style.description and style.max_new_tokens >= 32


@ALL
def test_what_a_style_promises_of_openings_holds(style: Style) -> None:
    caption = clean("In this picture, we can see a red kite over a beach.", style.rules)
    promised = "Begin with the content itself" in style.prompt
    assert style.rules.strip_openings or not promised
    assert caption.lower().startswith("a red kite" if style.rules.strip_openings else "in this picture")


def test_styles_of_one_sentence_keep_one() -> None:
    text = "A dog named Mr. Fox runs. It is brown. It barks."
    assert clean(text, get_style("one-sentence").rules) == "A dog named Mr. Fox runs."
    assert clean(text, get_style("short").rules) == "A dog named Mr. Fox runs. It is brown."
    assert clean(text, get_style("detailed").rules) == text


def test_an_unknown_style_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown caption style 'detaild'; known: default, .*Did you mean 'detailed'"):
        get_style("detaild")
