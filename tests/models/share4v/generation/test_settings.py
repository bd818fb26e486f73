"""Several answers, penalties and log-probabilities: generate, stream, the engine and transformers agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.llava import IMAGE, Reference, padded

from mindone.models.share4v import Share4V
from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.generation.engine import Engine, ImageSet, Request
from mindone.models.share4v.processing.tokenizer import Tokenizer

Pair = tuple[Reference, Share4V]
# Of ids that the small reference model likes to repeat, each setting changes some.
SETTINGS: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 1},
    {"logit_bias": {5: 3.0, 7: -3.0, 40: 2.0}},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"do_sample": True, "temperature": 1.5, "min_p": 0.1, "seed": 3},
    {"do_sample": True, "seed": 4, "frequency_penalty": 1.0, "no_repeat_ngram_size": 3, "logit_bias": {9: 1.0}},
]


@pytest.fixture
def pair(pair_of: Callable[..., Pair], tokenizer: Tokenizer) -> Pair:
    """The smallest model on the kernels."""
    reference, model = pair_of("small")
    reference.reseed(1)
    model.tokenizer = tokenizer
    return reference, model


def prompts(reference: Reference) -> tuple[list[list[int]], np.ndarray]:
    """Three prompts, one with an image."""
    return [reference.text(6), [*reference.text(3), IMAGE, *reference.text(9)], reference.text(11)], reference.images(1)


def batch(texts: list[list[int]]) -> dict[str, np.ndarray]:
    ids, mask = padded(texts, "left")
    return {"input_ids": ids, "attention_mask": mask}


def images_of(text: list[int], images: np.ndarray) -> np.ndarray | None:
    return images if IMAGE in text else None


def through_engine(model: Share4V, texts: list[list[int]], images: np.ndarray, settings: GenerationSettings) -> Any:
    """The completions of an engine, one request for each answer."""
    engine: Engine[tuple[int, int]] = Engine(model, 4)
    for number, text in enumerate(texts):
        image_set = ImageSet(images) if IMAGE in text else None
        for sequence in range(settings.num_return_sequences):
            request = Request((number, sequence), np.array([text]), settings.for_sequence(sequence), image_set)
            engine.submit(request)
    completions = {}
    while len(engine):
        completions |= {one.request_id: one for one in engine.step()}
    return [completions[key] for key in sorted(completions)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_path_gives_the_same_ids(pair: Pair, settings: dict[str, Any]) -> None:
    reference, model = pair
    texts, images = prompts(reference)
    settings = {"max_new_tokens": 12, "logprobs": 2, **settings}
    alone = [model.generate(np.array([text]), images_of(text, images), **settings)[0] for text in texts]
    together = model.generate(**batch(texts), pixel_values=images, **settings)
    assert together == alone
    assert together != model.generate(**batch(texts), pixel_values=images, max_new_tokens=12)
    pieces = list(model.stream(**batch(texts), pixel_values=images, **settings))
    completions = through_engine(model, texts, images, GenerationSettings.from_arguments(settings))
    for number, ids in enumerate(alone):
        own = [piece for piece in pieces if piece.index == number and piece.token_id is not None]
        assert [piece.token_id for piece in own] == ids == list(completions[number].token_ids)
        assert [one.token_id for one in together.logprobs[number]] == ids
        for other in ([piece.logprobs for piece in own], completions[number].logprobs):
            for ours, theirs in zip(together.logprobs[number], other, strict=True):
                assert ours.token_id == theirs.token_id and ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
                assert len(theirs.top) == 2


@pytest.mark.parametrize("size", [1, 2])
def test_no_repeat_ngram_size_gives_the_ids_of_transformers(pair: Pair, size: int) -> None:
    reference, model = pair
    # The ids that follow are biased, so that they repeat unless it is forbidden.
    text, bias = reference.text(8), {5: 30.0, 11: 31.0}
    settings: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12}
    theirs = {(key,): value for key, value in bias.items()}
    wanted = reference.generate(
        [text], reference.images(0), sequence_bias=theirs, no_repeat_ngram_size=size, **settings
    )
    assert model.generate(np.array([text]), logit_bias=bias, no_repeat_ngram_size=size, **settings) == wanted
    assert model.generate(np.array([text]), logit_bias=bias, **settings) != wanted


def test_logit_bias_gives_the_ids_of_transformers_with_beams_and_without(pair: Pair) -> None:
    reference, model = pair
    text, bias = reference.text(8), {5: 4.0, 11: -6.0, 23: 3.0}
    for beams in (1, 3):
        settings: dict[str, Any] = {"max_new_tokens": 12, "num_beams": beams}
        theirs = {(key,): value for key, value in bias.items()}
        wanted = reference.generate([text], reference.images(0), sequence_bias=theirs, **settings)
        assert model.generate(np.array([text]), logit_bias=bias, **settings) == wanted


def test_the_best_beams_are_those_of_transformers(pair: Pair) -> None:
    reference, model = pair
    text = [*reference.text(3), IMAGE, *reference.text(5)]
    images = reference.images(1)
    settings: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 4, "num_return_sequences": 3}
    got = model.generate(np.array([text]), images, **settings)
    assert got == reference.generate([text], images, **settings)
    assert got[0] == model.generate(np.array([text]), images, max_new_tokens=8, num_beams=4)[0]
    assert len(got.finish_reasons) == 3


def test_logprobs_are_those_of_transformers_logits(pair: Pair) -> None:
    reference, model = pair
    text = [*reference.text(4), IMAGE, *reference.text(7)]
    images = reference.images(1)
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "temperature": 2.0, "top_k": 20, "seed": 1}
    got = model.generate(np.array([text]), images, **settings, logprobs=3)
    logits = reference.logits([*text, *got[0]], images)[-len(got[0]) - 1 : -1]
    wanted = torch.log_softmax(torch.tensor(logits).double(), -1)
    for row, token in enumerate(got.logprobs[0]):
        assert token.logprob == pytest.approx(float(wanted[row, token.token_id]), abs=1e-3)
        best = torch.topk(wanted[row], 3)
        assert [one for one, _ in token.top] == best.indices.tolist()
        np.testing.assert_allclose([value for _, value in token.top], best.values.numpy(), atol=1e-3)


@pytest.mark.usefixtures("shared_graphs_here")
def test_several_answers_do_not_depend_on_the_batch_nor_on_their_number(small: Pair, tokenizer: Tokenizer) -> None:
    reference, model = small  # on every backend: each copies the rows of a cache differently
    model.tokenizer = tokenizer
    texts, images = prompts(reference)
    settings: dict[str, Any] = {"max_new_tokens": 10, "do_sample": True, "temperature": 1.5, "seed": 7}
    three = model.generate(**batch(texts), pixel_values=images, num_return_sequences=3, **settings)
    assert len(three) == 9 and len({tuple(ids) for ids in three[:3]}) == 3
    for number, text in enumerate(texts):
        own = images_of(text, images)
        assert model.generate(np.array([text]), own, num_return_sequences=2, **settings) == three[3 * number :][:2]
        assert model.generate(np.array([text]), own, **settings) == three[3 * number :][:1]
    pieces = list(model.stream(**batch(texts), pixel_values=images, num_return_sequences=3, **settings))
    new = [piece for piece in pieces if piece.token_id is not None]
    streamed = [[piece.token_id for piece in new if piece.index == row] for row in range(9)]
    assert streamed == three
    arguments = {**settings, "num_return_sequences": 3}
    completions = through_engine(model, texts, images, GenerationSettings.from_arguments(arguments))
    assert [list(one.token_ids) for one in completions] == three


def test_contradicting_settings_are_refused() -> None:
    make = GenerationSettings.from_arguments
    with pytest.raises(ValueError, match="greedy decoding gives the same answer each time: set do_sample=True"):
        make({"num_return_sequences": 2})
    with pytest.raises(ValueError, match=r"num_return_sequences \(3\) must not exceed num_beams \(2\)"):
        make({"num_return_sequences": 3, "num_beams": 2})
    with pytest.raises(ValueError, match="num_beams and logprobs cannot be combined"):
        make({"num_beams": 2, "logprobs": 1})
    with pytest.raises(ValueError, match="logprobs must be an integer of at least 0, got -1"):
        make({"logprobs": -1})
    with pytest.raises(TypeError, match=r"unknown setting 'no_repeat_ngram'.*Did you mean 'no_repeat_ngram_size'"):
        make({"no_repeat_ngram": 2})
    assert make({"top_k": None, "logprobs": None, "stop": None}) == GenerationSettings()
    with pytest.raises(ValueError, match="there is no sequence 2: num_return_sequences is 2"):
        make({"num_return_sequences": 2, "do_sample": True}).for_sequence(2)


def test_an_engine_explains_how_to_get_several_answers(pair: Pair) -> None:
    reference, model = pair
    several = GenerationSettings.from_arguments({"num_return_sequences": 2, "do_sample": True})
    with pytest.raises(ValueError, match=r"one request for each, with settings.for_sequence\(0\)"):
        Engine(model, 1).submit(Request(0, np.array([reference.text(3)]), several))


def test_an_id_outside_the_vocabulary_is_refused(pair: Pair) -> None:
    reference, model = pair
    ids = np.array([reference.text(3)])
    message = "logit_bias has the id 5000, but the vocabulary goes from 0 to 96"
    with pytest.raises(ValueError, match=message):
        model.generate(ids, logit_bias={5000: 1})
    completion = through_engine(model, ids.tolist(), None, GenerationSettings.from_arguments({"logit_bias": {5000: 1}}))
    assert completion[0].finish_reason == "error" and message in str(completion[0].error)
