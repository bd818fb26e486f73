"""Sampling: each rule against transformers' processors and warpers, and sampled tokens against probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mindone.models.share4v.generation.sampling import (
    Sampler,
    Sampling,
    TokenLogprobs,
    log_softmax,
    softmax,
    warp,
)

VOCABULARY = 60


def random_logits(seed: int) -> np.ndarray:
    """Return logits of various scales; every third seed gives ties."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(VOCABULARY) * rng.choice([0.1, 1, 10])
    return (np.round(logits, 1) if seed % 3 == 0 else logits).astype(np.float32)


def expected_probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return the probabilities from which transformers samples."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return torch.softmax(warpers(None, torch.tensor(logits)[None].double()), -1)[0].numpy()


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.35, 1e-6])
def test_warping_equals_transformers(temperature: float, top_k: int, top_p: float) -> None:
    sampling = Sampling(True, temperature, top_k, top_p)
    for seed in range(12):
        logits = random_logits(seed)
        ours, wanted = warp(logits, sampling), expected_probabilities(logits, sampling)
        # Among tokens of equal probability, the sort order decides which ones top_p keeps.
        np.testing.assert_allclose(np.sort(ours), np.sort(wanted), rtol=1e-6, atol=1e-12)
        if len(np.unique(logits)) == VOCABULARY:
            np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("min_p", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("others", [{}, {"temperature": 2.0, "top_k": 9, "top_p": 0.8}], ids=str)
def test_min_p_equals_transformers(min_p: float, others: dict[str, float]) -> None:
    sampling = Sampling(True, min_p=min_p, **others)
    for seed in (1, 2, 4, 5):  # no ties
        logits = random_logits(seed)
        np.testing.assert_allclose(
            warp(logits, sampling), expected_probabilities(logits, sampling), rtol=1e-6, atol=1e-12
        )


def test_logprobs_are_those_of_the_logits() -> None:
    logits = random_logits(2)
    wanted = torch.log_softmax(torch.tensor(logits).double(), -1)
    best = torch.topk(wanted, 3)
    got = TokenLogprobs.of(logits, 7, 3)
    assert got.token_id == 7 and got.logprob == pytest.approx(float(wanted[7]), rel=1e-9)
    assert [one for one, _ in got.top] == best.indices.tolist()
    np.testing.assert_allclose([value for _, value in got.top], best.values.numpy(), rtol=1e-9)
    assert TokenLogprobs.of(logits, 7, 0).top == ()


def test_top_k_keeps_all_tokens_that_tie_with_the_kth() -> None:
    logits = np.array([3, 1, 2, 2, 2, 0], np.float32)
    assert np.flatnonzero(warp(logits, Sampling(True, top_k=2))).tolist() == [0, 2, 3, 4]
    assert np.flatnonzero(expected_probabilities(logits, Sampling(True, top_k=2))).tolist() == [0, 2, 3, 4]


def test_softmax_and_its_logarithm_equal_torch() -> None:
    logits = np.array([[1e4, 1e4 - 3, -1e4], [0, 0.5, -2]])
    np.testing.assert_allclose(softmax(logits), torch.softmax(torch.tensor(logits), -1).numpy(), atol=1e-12)
    np.testing.assert_allclose(log_softmax(logits), torch.log_softmax(torch.tensor(logits), -1).numpy(), atol=1e-9)


def test_banned_tokens_are_not_chosen_and_the_penalty_is_applied_first() -> None:
    logits = np.array([5.0, 4.0, 3.0], np.float32)
    assert Sampler(Sampling()).choose(logits, np.array([], np.int64)) == 0
    assert Sampler(Sampling()).choose(logits, np.array([], np.int64), banned=(0,)) == 1
    assert Sampler(Sampling(repetition_penalty=2.0)).choose(logits, np.array([1]), banned=(0,)) == 2
    ban = MinNewTokensLengthLogitsProcessor(1, 3, eos_token_id=[0, 2])
    banned = ban(torch.tensor([[1]]), torch.tensor(logits)[None]).softmax(-1)[0].numpy()
    assert np.flatnonzero(banned).tolist() == [Sampler(Sampling()).choose(logits, np.array([1]), banned=(0, 2))]


def draw(logits: np.ndarray, sampling: Sampling, count: int) -> list[int]:
    sampler, nothing = Sampler(sampling), np.array([], np.int64)
    return [sampler.choose(logits, nothing) for _ in range(count)]


def test_the_same_seed_gives_the_same_tokens() -> None:
    logits = random_logits(1)
    first = draw(logits, Sampling(True, 2.0, seed=5), 50)
    assert first == draw(logits, Sampling(True, 2.0, seed=5), 50)
    assert first != draw(logits, Sampling(True, 2.0, seed=6), 50)
    assert draw(logits, Sampling(True, 2.0), 50) != draw(logits, Sampling(True, 2.0), 50)


@pytest.mark.parametrize("greedy", [Sampling(), Sampling(True, temperature=0), Sampling(False, 9.0, 3, 0.5, seed=1)])
def test_greedy_decoding_chooses_the_first_of_the_most_probable_tokens(greedy: Sampling) -> None:
    assert draw(np.array([0, 7, 1, 7], np.float32), greedy, 5) == [1] * 5


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.8}], ids=str)
def test_sampled_tokens_follow_the_probabilities(settings: dict[str, float]) -> None:
    sampling = Sampling(True, seed=3, **settings)
    logits = random_logits(4)[:12] / 2
    probabilities, count = expected_probabilities(logits, sampling), 4000
    seen = np.bincount(draw(logits, sampling, count), minlength=len(logits))
    kept = probabilities > 0
    assert seen[~kept].sum() == 0
    expected = probabilities[kept] * count
    statistic = ((seen[kept] - expected) ** 2 / expected).sum()
    # Chi-square with k - 1 degrees of freedom has mean k - 1 and standard deviation sqrt(2 (k - 1)).
    degrees = kept.sum() - 1
    assert degrees > 2 and statistic < degrees + 4 * np.sqrt(2 * degrees)


BAD = {
    "temperature": [-0.1, float("nan")],
    "top_k": [-1, 2.5],
    "top_p": [0, 1.1, -1, float("nan")],
    "repetition_penalty": [0, -2, float("nan")],
    "min_p": [-0.1, 1.5, float("nan")],
    "presence_penalty": [-2.1, 3, float("nan"), "0"],
    "frequency_penalty": [2.5, float("nan")],
    "no_repeat_ngram_size": [-1, 2.0],
    "logit_bias": [{-1: 1}, {1.5: 1}, {"x": 1}, {1: float("nan")}, {1: float("inf")}, [(1, 2)], {1: None}],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD.items() for value in values])
def test_the_error_names_a_setting_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*, got"):
        Sampling(True, **{name: value})


def test_a_sampler_refuses_to_choose_when_every_token_is_forbidden() -> None:
    with pytest.raises(ValueError, match="every token of the vocabulary is forbidden"):
        Sampler(Sampling(no_repeat_ngram_size=1)).choose(np.zeros(3, np.float32), np.array([0, 1, 2]))


def test_the_sequences_of_one_seed_differ_and_the_first_is_that_of_the_seed() -> None:
    logits, nothing = random_logits(1), np.array([], np.int64)
    sampling = Sampling(True, 2.0, seed=5)
    drawn = [[sampler.choose(logits, nothing) for _ in range(30)] for sampler in map(Sampler, [sampling] * 3, range(3))]
    assert drawn[0] == draw(logits, sampling, 30)
    assert len({tuple(one) for one in drawn}) == 3
    again = Sampler(sampling, 2)
    assert [again.choose(logits, nothing) for _ in range(30)] == drawn[2]


def test_a_very_small_temperature_equals_greedy_decoding() -> None:
    logits = random_logits(1)
    assert set(draw(logits, Sampling(True, 1e-320), 5)) == {int(logits.argmax())}
