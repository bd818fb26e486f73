"""The named styles: their prompts are valid, and their rules do what their prompts ask for."""

from __future__ import annotations

import pytest

from mindone.pipelines.image_to_text.dataset.prompts.plan import Prompt
from mindone.pipelines.image_to_text.dataset.prompts.styles import STYLES, Style, get_style
from mindone.pipelines.image_to_text.dataset.prompts.variables import variables_of
from mindone.pipelines.image_to_text.dataset.rules.text_rules import clean

ALL = pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))


def test_the_required_styles_exist() -> None:
    assert len(STYLES) >= 10
    assert {"one-sentence", "exhaustive", "tags", "direct", "text-to-video", "product", "ocr"} <= set(STYLES)
    assert len({style.prompt for style in STYLES.values()}) == len(STYLES)


@ALL
def test_the_prompt_of_a_style_is_valid(style: Style) -> None:
    assert get_style(style.name) is style
    assert Prompt(style.prompt).text == style.prompt == style.prompt.strip()
    assert variables_of(style.prompt) == frozenset() and "<image>" not in style.prompt
    assert style.description and style.max_new_tokens >= 32


@ALL
def test_openings_are_removed_if_the_prompt_forbids_them(style: Style) -> None:
    caption = clean("In this picture, we can see a red kite over a beach.", style.rules)
    forbidden = "Begin with the content itself" in style.prompt
    assert style.rules.strip_openings or not forbidden
    assert caption.lower().startswith("a red kite" if style.rules.strip_openings else "in this picture")


def test_styles_with_a_maximum_of_sentences() -> None:
    text = "A dog named Mr. Fox runs. It is brown. It barks."
    assert clean(text, get_style("one-sentence").rules) == "A dog named Mr. Fox runs."
    assert clean(text, get_style("short").rules) == "A dog named Mr. Fox runs. It is brown."
    assert clean(text, get_style("detailed").rules) == text


def test_an_unknown_style() -> None:
    with pytest.raises(ValueError, match=r"unknown caption style 'detaild'; known: default, .*Did you mean 'detailed'"):
        get_style("detaild")
