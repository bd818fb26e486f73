"""Streaming: pieces of text, stop strings, complete characters, and several streams at a time."""

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


def text_of(pieces: Iterator[GenerationPiece], index: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.index == index)


def words(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_bos=False)


def test_the_pieces_of_a_stream_joined_are_the_text_of_the_ids(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    texts = ["the lazy dog\nand  a red circle", "über 日本語 🙂👍🏽 fox", ""]
    script(*[words(tokenizer, text) for text in texts])
    ids = scripted_model.generate(prompt(3, batch=3))
    assert [tokenizer.decode(answer) for answer in ids] == texts
    pieces = list(scripted_model.stream(prompt(3, batch=3)))
    assert [text_of(iter(pieces), index) for index in range(3)] == texts


def test_no_piece_contains_a_part_of_a_character(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    ids = words(tokenizer, "日本🙂")
    assert len(ids) >= 10  # bytes
    script(ids)
    shown = [piece.text for piece in scripted_model.stream(prompt(3))]
    assert [text for text in shown if text] == ["日", "本", "🙂"]
    script(ids[:-1])  # ends within the last character: each of its bytes is U+FFFD
    assert text_of(scripted_model.stream(prompt(3))) == "日本" + "\ufffd" * 3


def test_white_space_at_the_start_of_an_answer_is_removed(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    script(words(tokenizer, " \n a dog"))
    assert text_of(scripted_model.stream(prompt(3))) == "a dog"


@pytest.mark.parametrize("stop", ["END", ["zzz", "END"], "D"], ids=str)
def test_a_stop_string_of_several_tokens_ends_an_answer_and_is_removed(
    stop: str, scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    before = words(tokenizer, "a red ")
    ending = [item for letter in "END" for item in words(tokenizer, letter)[-1:]]
    assert "".join(tokenizer.token_of(item) for item in ending) == "END"
    script([*before, *ending, *words(tokenizer, " of it")])
    pieces = list(scripted_model.stream(prompt(3), stop=stop))
    assert text_of(iter(pieces)) == ("a red EN" if stop == "D" else "a red")
    assert pieces[-1].finish_reason == "stop" and pieces[-1].token_id == ending[-1]
    assert scripted_model.generate(prompt(3), stop=stop) == [[*before, *ending]]


def test_the_beginning_of_a_stop_string_is_shown_if_the_rest_does_not_follow(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    script(words(tokenizer, "a EN circle, EN"))
    pieces = list(scripted_model.stream(prompt(3), stop=["END", "EN of"]))
    assert text_of(iter(pieces)) == "a EN circle, EN" and pieces[-1].finish_reason == "eos"


def test_white_space_before_a_stop_string_is_removed(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    spelt = [item for letter in "END" for item in words(tokenizer, letter)[-1:]]
    script([*words(tokenizer, "a dog \n "), *spelt])
    assert text_of(scripted_model.stream(prompt(3), stop="END")) == "a dog"


def test_the_first_of_two_stop_strings_in_one_token_ends_the_answer(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    script(words(tokenizer, "the quick brown"))
    assert text_of(scripted_model.stream(prompt(3), stop=["ck", "i"])) == "the qu"


def test_a_stop_string_ends_only_its_own_sequence(
    scripted_model: Share4V, script: Callable, tokenizer: Tokenizer
) -> None:
    script(words(tokenizer, "red dog"), words(tokenizer, "two dogs on white"))
    pieces = list(scripted_model.stream(prompt(3, batch=2), stop="red"))
    assert (text_of(iter(pieces), 0), text_of(iter(pieces), 1)) == ("", "two dogs on white")


def test_the_error_without_a_tokenizer_says_how_to_set_one(small: Pair) -> None:
    model = Share4V(small[1].config)
    with pytest.raises(ValueError, match=r"this model has no tokenizer: set model.tokenizer = processor.tokenizer"):
        model.stream(prompt(3))


def generated(model: Share4V, ids: list[int], images: np.ndarray | None = None, **settings: object) -> list[int]:
    return model.generate(np.array([ids]), images, **settings)[0]


@pytest.fixture
def small_with_tokenizer(small: Pair, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """The small model with a tokenizer, for streams; its texts have no meaning."""
    monkeypatch.setattr(small[1], "_tokenizer", tokenizer)
    return small


def ids_of(pieces: Iterator[GenerationPiece]) -> list[int]:
    return [piece.token_id for piece in pieces if piece.token_id is not None]


@pytest.mark.usefixtures("shared_graphs_here")
def test_two_streams_of_one_model_are_independent(small_with_tokenizer: Pair) -> None:
    reference, model = small_with_tokenizer
    one, two = reference.text(30), reference.text(40)
    wanted = [generated(model, text, max_new_tokens=12) for text in (one, two)]
    first, second = (model.stream(np.array([text]), max_new_tokens=12) for text in (one, two))
    pairs = list(zip_longest(first, second))
    assert [ids_of(filter(None, pieces)) for pieces in zip(*pairs, strict=True)] == wanted


@pytest.mark.usefixtures("shared_graphs_here")
def test_an_abandoned_stream_does_not_change_later_answers(small_with_tokenizer: Pair) -> None:
    reference, model = small_with_tokenizer
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


@pytest.mark.usefixtures("shared_graphs_here")
def test_a_stream_whose_cache_was_used_by_another_call_raises_an_error(small_with_tokenizer: Pair) -> None:
    reference, model = small_with_tokenizer
    cache = model.new_cache(1, 128)
    stream = model.stream(np.array([reference.text(9)]), past_key_values=cache, max_new_tokens=20)
    next(stream)
    other = reference.text(8)
    wanted = generated(model, other, max_new_tokens=8)
    assert generated(model, other, past_key_values=cache, max_new_tokens=8) == wanted
    with pytest.raises(RuntimeError, match="passed to another call before this answer was complete"):
        list(stream)
