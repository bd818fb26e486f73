"""Forbidden words and forced beginnings as token ids, against transformers, brute force and training text."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoBadWordsLogitsProcessor

from mindone.models.share4v import AutoProcessor, Share4VProcessor
from mindone.models.share4v.processing.chat_templates import TEMPLATES
from mindone.models.share4v.processing.tokenizer import Tokenizer
from mindone.models.share4v.training.labels import tokenize_conversation
from mindone.pipelines.image_to_text.dataset.inference.token_rules import (
    ForbiddenSequences,
    ForbiddenWords,
    case_forms,
    forced_ids,
)
from mindone.pipelines.image_to_text.dataset.rules.words import has_word

VOCABULARY = 12


@pytest.fixture(scope="module")
def processor() -> Share4VProcessor:
    return AutoProcessor.from_pretrained("sharegpt4v-tiny")


@pytest.fixture(scope="module")
def tokenizer(processor: Share4VProcessor) -> Tokenizer:
    return processor.tokenizer


# Sequences


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(st.integers(0, 3), min_size=4, max_size=12),
)
def test_sequences_forbid_what_transformers_forbids(sequences: list[list[int]], ids: list[int]) -> None:
    bad_words = NoBadWordsLogitsProcessor(sequences, eos_token_id=torch.tensor([VOCABULARY - 1]))
    scores = bad_words(torch.tensor([ids]), torch.zeros(1, VOCABULARY))
    expected = set(torch.isinf(scores[0]).nonzero().flatten().tolist())
    assert ForbiddenSequences(sequences)(ids) == expected


def test_a_sequence_does_not_match_across_the_end_of_the_prompt() -> None:
    """Unlike in transformers, which looks at prompt and answer together, only the answer's ids are passed here."""
    assert ForbiddenSequences([(1, 2)])([]) == frozenset()
    assert ForbiddenSequences([(1, 2)])([1]) == {2}
    with pytest.raises(ValueError, match="a forbidden sequence is empty"):
        ForbiddenSequences([()])


# Words


def can_write(tokenizer: Tokenizer, forbidden: ForbiddenWords, pieces: list[int]) -> bool:
    """Return whether a model can generate these ids one by one."""
    return all(one not in forbidden(pieces[:index]) for index, one in enumerate(pieces))


@pytest.mark.parametrize("word", ["red", "Red", "blue star", "background", "photo", "café"])
def test_the_usual_split_of_a_word_is_forbidden(tokenizer: Tokenizer, word: str) -> None:
    forbidden = ForbiddenWords(tokenizer, [word])
    for form in case_forms(word):
        for text in (form, f"A {form} sky", f'They say "{form}" twice.', f"A line\n{form}.", f"half-{form}, then"):
            assert not can_write(tokenizer, forbidden, tokenizer.encode(text, add_bos=False)), text
    assert can_write(tokenizer, forbidden, tokenizer.encode("A large green square there", add_bos=False))


def test_every_split_of_a_word_is_forbidden(tokenizer: Tokenizer) -> None:
    """All sequences of pieces that write the word, found by trying every split."""
    pieces = {tokenizer.token_of(one): one for one in range(tokenizer.vocab_size)}
    forbidden = ForbiddenWords(tokenizer, ["small"])
    spelled = 0
    for start in ("▁small", "small", "▁Small", "SMALL"):
        for cuts in product((False, True), repeat=len(start) - 1):
            parts, last = [], 0
            for end, cut in enumerate([*cuts, True], 1):
                if cut:
                    parts.append(start[last:end])
                    last = end
            if all(part in pieces for part in parts):
                spelled += 1
                ids = [pieces[part] for part in parts]
                assert tokenizer.decode(ids).strip().lower() == "small"
                before = tokenizer.encode("A", add_bos=False) if start.startswith("▁") else []
                assert not can_write(tokenizer, forbidden, before + ids), parts
    assert spelled > 20


def test_a_word_is_not_forbidden_inside_a_longer_word(tokenizer: Tokenizer) -> None:
    forbidden = ForbiddenWords(tokenizer, ["art"])
    letters = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "smart"}
    ids = [tokenizer.convert_tokens_to_ids("▁s"), *(letters[letter] for letter in "mart")]
    assert tokenizer.decode(ids) == "smart" and can_write(tokenizer, forbidden, ids)
    assert not can_write(tokenizer, forbidden, [tokenizer.convert_tokens_to_ids("▁"), *ids[-3:]])


def test_random_ids_that_are_allowed_never_write_a_forbidden_word(tokenizer: Tokenizer) -> None:
    """Random ids, each allowed when it is chosen, decode to a text without the words."""
    words = ["a", "red", "st", "in the"]
    forbidden, rng = ForbiddenWords(tokenizer, words), random.Random(3)
    likely = [one for one in range(tokenizer.vocab_size) if len(tokenizer.token_of(one)) <= 3] + list(
        {one for word in words for one in tokenizer.encode(f"A {word} x{word}", add_bos=False)}
    )
    refused = 0
    for _ in range(200):
        ids: list[int] = []
        for _ in range(40):
            choice = rng.choice(likely)
            if choice in tokenizer.special_ids or tokenizer.token_of(choice).startswith("<0x"):
                continue
            if choice in forbidden(ids):
                refused += 1
                continue
            ids.append(choice)
        text = tokenizer.decode(ids)
        assert not [word for word in words if has_word(text, word)], text
    assert refused > 100


def test_a_word_with_capitals_is_forbidden_only_as_given(tokenizer: Tokenizer) -> None:
    forbidden = ForbiddenWords(tokenizer, ["Red"])
    assert not can_write(tokenizer, forbidden, tokenizer.encode("A Red star", add_bos=False))
    assert can_write(tokenizer, forbidden, tokenizer.encode("A red star", add_bos=False))


def test_another_vocabulary(vocabulary: Path) -> None:
    tokenizer = Tokenizer(vocabulary)
    forbidden = ForbiddenWords(tokenizer, ["circle", "naïve", "#1"])
    for text in ("a circle", "Circle", "so naïve", "the #1", "(#1"):
        assert not can_write(tokenizer, forbidden, tokenizer.encode(text, add_bos=False)), text
    assert can_write(tokenizer, forbidden, tokenizer.encode("a square of #2 and a naïf", add_bos=False))


def test_an_empty_word_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="a forbidden word is empty"):
        ForbiddenWords(tokenizer, ["red", " "])


# Forced beginnings


@pytest.mark.parametrize("conversation", TEMPLATES)
@pytest.mark.parametrize("beginning", ["A large red circle", "On a black background,", '"Stop" is', "The  sky"])
def test_a_beginning_has_the_ids_of_training(processor: Share4VProcessor, conversation: str, beginning: str) -> None:
    question = "<image>" if conversation == "plain" else "<image>\nDescribe this image"
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{beginning} stands there."}]
    text = tokenize_conversation(processor, chat, conversation)
    labelled = [int(one) for one, label in zip(text.input_ids, text.labels, strict=True) if label >= 0]
    ids = forced_ids(processor, beginning, conversation)
    prompt = processor.encode_prompt(processor.prompt(None, 1, conversation))
    assert [*prompt, *ids] == text.input_ids[: len(prompt) + len(ids)].tolist()
    assert tuple(labelled[: len(ids)]) == ids
    assert processor.decode(ids) == beginning


def test_white_space_around_a_beginning_is_removed(processor: Share4VProcessor) -> None:
    assert forced_ids(processor, " A red \n") == forced_ids(processor, "A red")
    assert forced_ids(processor, "  ") == ()


@pytest.mark.parametrize("beginning", ["<image> shows", "A</s>", "<s>A"])
def test_a_beginning_with_special_tokens_is_refused(processor: Share4VProcessor, beginning: str) -> None:
    with pytest.raises(ValueError, match=r"contains <(image|/s|s)>, which the model does not read as text"):
        forced_ids(processor, beginning)
