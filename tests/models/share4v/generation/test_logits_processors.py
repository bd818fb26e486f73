"""Penalties, biases and n-grams: each against transformers' processors or OpenAI's definition, and in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from mindone.models.share4v.generation.logits_processors import (
    penalize_frequency,
    penalize_repetition,
    process,
    repeated_ngrams,
)
from mindone.models.share4v.generation.sampling import Sampler, Sampling

VOCABULARY = 40


def random_logits(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCABULARY) * 5).astype(np.float32)


def run(processor: object, seen: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """What transformers' processor makes of the logits after the ids `seen`."""
    return processor(torch.tensor(seen)[None], torch.tensor(logits)[None].clone())[0].numpy()


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 5.0])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    rng = np.random.default_rng(1)
    for seed in range(8):
        logits, seen = random_logits(seed), rng.integers(0, VOCABULARY, 40)
        wanted = run(RepetitionPenaltyLogitsProcessor(penalty), seen, logits)
        np.testing.assert_allclose(penalize_repetition(logits, seen, penalty), wanted, rtol=1e-6)


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e-40, 1e-30])
def test_a_repetition_penalty_near_0_gives_finite_scores(penalty: float) -> None:
    """They are sampled from: infinite ones would have no probabilities."""
    scores = np.array([-3.0, 0.0, 2.0, 5.0], np.float32)
    found = penalize_repetition(scores, np.array([0, 1, 2]), penalty)
    assert np.isfinite(found).all() and found[1] == 0 and found[2] >= 1e30 and -3 < found[0] <= 0 and found[3] == 5
    assert Sampler(Sampling(do_sample=True, repetition_penalty=penalty)).choose(scores, np.array([2]), []) == 2


def test_repetition_penalty_ignores_placeholders_and_does_not_change_its_input() -> None:
    logits = np.array([1.0, -1.0, 2.0], np.float32)
    penalised = penalize_repetition(logits, np.array([-200, -1, 0, 1, 1, 3, 32000]), 2.0)
    assert penalised.tolist() == [0.5, -2.0, 2.0]
    assert logits.tolist() == [1.0, -1.0, 2.0]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_repeat_ngram_size_equals_transformers(size: int) -> None:
    rng = np.random.default_rng(size)
    for length in (0, 1, size - 1, size, 30, 200):
        seen, logits = rng.integers(0, 4, max(length, 0)), random_logits(length)
        wanted = run(NoRepeatNGramLogitsProcessor(size), seen, logits)
        got = process(logits, seen[: length // 2], seen[length // 2 :].tolist(), Sampling(no_repeat_ngram_size=size))
        np.testing.assert_array_equal(got, wanted)


def test_image_positions_of_the_prompt_are_never_forbidden() -> None:
    assert repeated_ngrams(np.array([5, -1, -1, -1, 5]), 2).tolist() == []
    assert repeated_ngrams(np.array([-1, -1, 7, -1, -1]), 3).tolist() == [7]


def test_logit_bias_equals_transformers_sequence_bias_of_single_tokens() -> None:
    bias = {3: -100.0, 17: 2.5, 39: 0.25}
    logits = random_logits(3)
    wanted = run(SequenceBiasLogitsProcessor({(key,): value for key, value in bias.items()}), np.array([1, 3]), logits)
    got = process(logits, np.array([1]), [3], Sampling(logit_bias=bias))
    np.testing.assert_array_equal(got, wanted)
    assert logits[3] == random_logits(3)[3]


def test_penalties_follow_the_definition_of_openai() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, where c counts the generated tokens and not the prompt's."""
    logits, generated = random_logits(4), [5, 9, 5, 5, 20]
    wanted = logits.astype(np.float64)
    for token in range(VOCABULARY):
        count = generated.count(token)
        wanted[token] += -count * 0.7 - (count > 0) * 1.1
    sampling = Sampling(presence_penalty=1.1, frequency_penalty=0.7)
    got = process(logits, np.array([1, 2, 3, 9, 9]), generated, sampling)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    np.testing.assert_array_equal(penalize_frequency(logits, [], 1.1, 0.7), logits)


def test_processors_run_in_the_order_of_transformers() -> None:
    rng = np.random.default_rng(0)
    for seed in range(6):
        logits, seen = random_logits(seed), rng.integers(0, 6, 50)
        bias = {0: 4.0, 3: -4.0, 30: 1.0}
        processors = LogitsProcessorList(
            [
                SequenceBiasLogitsProcessor({(key,): value for key, value in bias.items()}),
                RepetitionPenaltyLogitsProcessor(1.7),
                NoRepeatNGramLogitsProcessor(3),
            ]
        )
        sampling = Sampling(repetition_penalty=1.7, no_repeat_ngram_size=3, logit_bias=bias)
        np.testing.assert_allclose(
            process(logits, seen[:20], seen[20:].tolist(), sampling), run(processors, seen, logits), rtol=1e-6
        )


def test_without_any_of_them_the_same_array_is_returned() -> None:
    logits = random_logits(1)
    assert process(logits, np.array([1]), [2], Sampling()) is logits
