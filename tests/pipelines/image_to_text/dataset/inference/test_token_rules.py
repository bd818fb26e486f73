"""Forbidden words and forced beginnings in token ids: transformers' processor, brute force and training text decide."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
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


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(st.integers(0, 3), min_size=4, max_size=12),
)
def test_sequences_forbid_what_transformers_forbids(sequences: list[list[int]], ids: list[int]) -> None:
    bad_words = NoBadWordsLogitsProcessor(sequences, eos_token_id=torch.tensor([VOCABULARY - 1]))
    scores = bad_words(torch.tensor([ids]), torch.zeros(1, VOCABULARY))
    expected = set(torch.isinf(scores[0]).nonzero().flatten().tolist())
    assert ForbiddenSequences(sequences)(ids) == expected


def test_a_sequence_can_end_the_first_words_of_an_answer() -> None:
    """Where transformers looks at prompt and answer together, only the answer's ids are given here."""
    assert ForbiddenSequences([(1, 2)])([]) == frozenset()
    assert ForbiddenSequences([(1, 2)])([1]) == {2}
    with pytest.raises(ValueError, match="no ids"):
        ForbiddenSequences([()])


# Words


def write(tokenizer: Tokenizer, forbidden: ForbiddenWords, pieces: list[int]) -> bool:
    """Whether a model could write these ids one by one."""
    return all(one not in forbidden(pieces[:place]) for place, one in enumerate(pieces))


@pytest.mark.parametrize("word", ["red", "Red", "blue star", "background", "photo", "café"])
def test_a_canonical_spelling_is_never_completed(tokenizer: Tokenizer, word: str) -> None:
    forbidden = ForbiddenWords(tokenizer, [word])
    for form in case_forms(word):
        for text in (form, f"A {form} sky", f'They say "{form}" twice.', f"A line\n{form}.", f"half-{form}, then"):
            assert not write(tokenizer, forbidden, tokenizer.encode(text, add_bos=False)), text
    assert write(tokenizer, forbidden, tokenizer.encode("A large green square there", add_bos=False))


def test_every_way_of_cutting_a_word_is_forbidden(tokenizer: Tokenizer) -> None:
    """All sequences of pieces that write the word, found by trying every cut."""
    pieces = {tokenizer.token_of(one): one for one in range(tokenizer.vocab_size)}
    forbidden = ForbiddenWords(tokenizer, ["small"])
    spelled = 0
    for start in ("▁small", "small", "▁Small", "SMALL"):
        for cuts in product((False, True), repeat=len(start) - 1):
            parts, last = [], 0
            for place, cut in enumerate([*cuts, True], 1):
                if cut:
                    parts.append(start[last:place])
                    last = place
            if all(part in pieces for part in parts):
                spelled += 1
                ids = [pieces[part] for part in parts]
                assert tokenizer.decode(ids).strip().lower() == "small"
                before = tokenizer.encode("A", add_bos=False) if start.startswith("▁") else []
                assert not write(tokenizer, forbidden, before + ids), parts
    assert spelled > 20


def test_inside_a_longer_word_nothing_is_forbidden(tokenizer: Tokenizer) -> None:
    forbidden = ForbiddenWords(tokenizer, ["art"])
    letters = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "smart"}
    ids = [tokenizer.convert_tokens_to_ids("▁s"), *(letters[letter] for letter in "mart")]
    assert tokenizer.decode(ids) == "smart" and write(tokenizer, forbidden, ids)
    assert not write(tokenizer, forbidden, [tokenizer.convert_tokens_to_ids("▁"), *ids[-3:]])


def test_random_walks_around_forbidden_words_never_write_one(tokenizer: Tokenizer) -> None:
    """Any ids that the rule lets pass decode to a text without the words, unless a longer word begins with them."""
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


def test_a_word_with_capitals_is_forbidden_as_it_stands(tokenizer: Tokenizer) -> None:
    forbidden = ForbiddenWords(tokenizer, ["Red"])
    assert not write(tokenizer, forbidden, tokenizer.encode("A Red star", add_bos=False))
    assert write(tokenizer, forbidden, tokenizer.encode("A red star", add_bos=False))


def test_the_vocabulary_of_another_model(vocabulary: Path) -> None:
    tokenizer = Tokenizer(vocabulary)
    forbidden = ForbiddenWords(tokenizer, ["circle", "naïve", "#1"])
    for text in ("a circle", "Circle", "so naïve", "the #1", "(#1"):
        assert not write(tokenizer, forbidden, tokenizer.encode(text, add_bos=False)), text
    assert write(tokenizer, forbidden, tokenizer.encode("a square of #2 and a naïf", add_bos=False))


def test_words_that_will_not_do(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="a forbidden word is empty"):
        ForbiddenWords(tokenizer, ["red", " "])


# Forced beginnings


@pytest.mark.parametrize("conversation", TEMPLATES)
@pytest.mark.parametrize("beginning", ["A large red circle", "On a black background,", '"Stop" is', "The  sky"])
def test_a_beginning_has_the_ids_of_training(processor: Share4VProcessor, conversation: str, beginning: str) -> None:
    question = "<image>" if conversation == "plain" else "<image>\nDescribe this image"
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{beginning} stands there."}]
    text = tokenize_conversation(processor, chat, conversation)
    learnt = [int(one) for one, label in zip(text.input_ids, text.labels, strict=True) if label >= 0]
    ids = forced_ids(processor, beginning, conversation)
    prompt = processor.encode_prompt(processor.prompt(None, 1, conversation))
    assert [*prompt, *ids] == text.input_ids[: len(prompt) + len(ids)].tolist()
    assert tuple(learnt[: len(ids)]) == ids
    assert processor.decode(ids) == beginning


def test_white_space_around_a_beginning_changes_nothing(processor: Share4VProcessor) -> None:
    assert forced_ids(processor, " A red \n") == forced_ids(processor, "A red")
    assert forced_ids(processor, "  ") == ()


@pytest.mark.parametrize("beginning", ["<image> shows", "A</s>", "<s>A"])
def test_a_beginning_of_special_tokens_is_refused(processor: Share4VProcessor, beginning: str) -> None:
    with pytest.raises(ValueError, match=r"holds <(image|/s|s)>, which is no text"):
        forced_ids(processor, beginning)
