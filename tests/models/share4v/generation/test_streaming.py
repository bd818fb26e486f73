"""Streams: text as it grows, stop strings, whole characters, and streams beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest

import numpy as np
import pytest
from helpers.llava import Reference

from mindone.models.share4v import Share4V
from mindone.models.share4v.generation.streaming import GenerationPiece
from mindone.models.share4v.processing.tokenizer import Tokenizer

Pair = tuple[Reference, Share4V]


def prompt(length: int, batch: int = 1) -> np.ndarray:
    return np.full((batch, length), 5)


def told(pieces: Iterator[GenerationPiece], index: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.index == index)


def words(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_bos=False)


def test_a_stream_joined_is_the_text_of_the_ids(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    texts = ["the lazy dog\nand  a red circle", "über 日本語 🙂👍🏽 fox", ""]
    script(*[words(tokenizer, text) for text in texts])
    ids = scripted_model.generate(prompt(3, batch=3))
    assert [tokenizer.decode(answer) for answer in ids] == texts
    pieces = list(scripted_model.stream(prompt(3, batch=3)))
    assert [told(iter(pieces), index) for index in range(3)] == texts


def test_no_piece_shows_half_a_character(scripted_model: Share4V, script: Callable, tokenizer: Tokenizer) -> None:
    ids = words(tokenizer, "日本🙂")
    assert len(ids) >= 10  # bytes
    script(ids)
    shown = [piece.text for piece in scripted_model.stream(prompt(3))]
    assert [text for text in shown if text] == ["日", "本", "🙂"]
    script(ids[:-1])  # cut short within the last character: each byte of it is U+FFFD
    assert told(scripted_model.stream(prompt(3))) == "日本" + "\ufffd" * 3


def test_white_space_that_opens_an_answer_is_not_shown(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    script(words(tokenizer, " \n a dog"))
    assert told(scripted_model.stream(prompt(3))) == "a dog"


@pytest.mark.parametrize("stop", ["END", ["zzz", "END"], "D"], ids=str)
def test_a_stop_string_over_several_tokens_ends_an_answer_and_is_not_shown(
    stop: str, scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    before = words(tokenizer, "a red ")
    ending = [item for letter in "END" for item in words(tokenizer, letter)[-1:]]
    assert "".join(tokenizer.token_of(item) for item in ending) == "END"
    script([*before, *ending, *words(tokenizer, " of it")])
    pieces = list(scripted_model.stream(prompt(3), stop=stop))
    assert told(iter(pieces)) == ("a red EN" if stop == "D" else "a red")
    assert pieces[-1].finish_reason == "stop" and pieces[-1].token_id == ending[-1]
    assert scripted_model.generate(prompt(3), stop=stop) == [[*before, *ending]]


def test_what_only_looks_like_a_stop_string_is_shown_after_all(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    script(words(tokenizer, "a EN circle, EN"))
    pieces = list(scripted_model.stream(prompt(3), stop=["END", "EN of"]))
    assert told(iter(pieces)) == "a EN circle, EN" and pieces[-1].finish_reason == "eos"


def test_white_space_before_a_stop_string_is_not_shown_either(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    spelt = [item for letter in "END" for item in words(tokenizer, letter)[-1:]]
    script([*words(tokenizer, "a dog \n "), *spelt])
    assert told(scripted_model.stream(prompt(3), stop="END")) == "a dog"


def test_the_first_of_two_stop_strings_in_one_token_counts(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    script(words(tokenizer, "the quick brown"))
    assert told(scripted_model.stream(prompt(3), stop=["ck", "i"])) == "the qu"


def test_a_stop_string_ends_only_its_own_text(scripted_model: Share4V, script: Callable, tokenizer: Tokenizer) -> None:
    script(words(tokenizer, "red dog"), words(tokenizer, "two dogs on white"))
    pieces = list(scripted_model.stream(prompt(3, batch=2), stop="red"))
    assert (told(iter(pieces), 0), told(iter(pieces), 1)) == ("", "two dogs on white")


def test_a_model_without_a_tokenizer_says_how_to_give_it_one(small: Pair) -> None:
    model = Share4V(small[1].config)
    with pytest.raises(ValueError, match=r"this model has no tokenizer: set model.tokenizer = processor.tokenizer"):
        model.stream(prompt(3))


def generated(model: Share4V, ids: list[int], images: np.ndarray | None = None, **settings: object) -> list[int]:
    return model.generate(np.array([ids]), images, **settings)[0]


@pytest.fixture
def told_small(small: Pair, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """The small model with a tokenizer, for streams; what its text says means nothing."""
    monkeypatch.setattr(small[1], "_tokenizer", tokenizer)
    return small


def ids_of(pieces: Iterator[GenerationPiece]) -> list[int]:
    return [piece.token_id for piece in pieces if piece.token_id is not None]


def test_two_streams_of_one_model_do_not_disturb_each_other(told_small: Pair) -> None:
    reference, model = told_small
    one, two = reference.text(30), reference.text(40)
    wanted = [generated(model, text, max_new_tokens=12) for text in (one, two)]
    first, second = (model.stream(np.array([text]), max_new_tokens=12) for text in (one, two))
    pairs = list(zip_longest(first, second))
    assert [ids_of(filter(None, pieces)) for pieces in zip(*pairs, strict=True)] == wanted


def test_an_abandoned_stream_leaves_no_trace(told_small: Pair) -> None:
    reference, model = told_small
    one, two = reference.text(70), reference.text(75)
    wanted = generated(model, two, max_new_tokens=8)
    stream = model.stream(np.array([one]), max_new_tokens=50)
    next(stream), next(stream)
    assert generated(model, two, max_new_tokens=8) == wanted
    stream.close()
    assert generated(model, two, max_new_tokens=8) == wanted
    assert (
        generated(model, one, max_new_tokens=8) == reference.generate([one], reference.images(0), max_new_tokens=8)[0]
    )


def test_a_stream_whose_cache_was_given_away_stops_with_an_error(told_small: Pair) -> None:
    reference, model = told_small
    cache = model.new_cache(1, 128)
    stream = model.stream(np.array([reference.text(9)]), past_key_values=cache, max_new_tokens=20)
    next(stream)
    other = reference.text(8)
    wanted = generated(model, other, max_new_tokens=8)
    assert generated(model, other, past_key_values=cache, max_new_tokens=8) == wanted
    with pytest.raises(RuntimeError, match="passed to another call before this answer was complete"):
        list(stream)
