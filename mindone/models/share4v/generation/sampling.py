"""Choosing the next token from logits on the host, as Hugging Face's logits processors and warpers do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np

from .logits_processors import process

# Setting -> its type, a predicate for valid values, and their description for the error message.
_RULES: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "temperature": (Real, lambda value: value >= 0, "a number, 0 or more"),
    "top_k": (Integral, lambda value: value >= 0, "an integer, 0 or more"),
    "top_p": (Real, lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "min_p": (Real, lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "repetition_penalty": (Real, lambda value: value > 0, "a number above 0"),
    "presence_penalty": (Real, lambda value: -2 <= value <= 2, "a number from -2 to 2"),
    "frequency_penalty": (Real, lambda value: -2 <= value <= 2, "a number from -2 to 2"),
    "no_repeat_ngram_size": (Integral, lambda value: value >= 0, "an integer, 0 or more"),
    "seed": (Integral | None, lambda value: value is None or value >= 0, "an integer, 0 or more, or None"),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; names and meanings as in Hugging Face's GenerationConfig and OpenAI's API.

    The defaults differ: top_k is off here, while Hugging Face's is 50.

    Attributes:
        do_sample: sample from the distribution; otherwise choose the most probable token.
        temperature: logits are divided by it; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose total probability reaches this.
        repetition_penalty: logits of tokens that the sequence already contains, prompt included, are divided (if
            positive) or multiplied (if negative) by it (Keskar et al. 2019).
        seed: of the random numbers; None gives different results each time. Each sequence of a batch has its own random
            numbers from the same seed, so its result is the same as in a batch of its own.
        min_p: keep the tokens with at least this fraction of the most probable token's probability; 0 keeps all.
        presence_penalty: subtracted from the logit of each token that was generated before, as OpenAI defines it.
        frequency_penalty: subtracted from a token's logit for each time that it was generated before.
        no_repeat_ngram_size: no sequence of this many ids occurs twice, prompt included; 0 is off.
        logit_bias: added to the logits of the given ids, {id: bias}; -100 in effect forbids a token.

    Raises:
        ValueError: a value is outside its range; the message names it.

    Example:
        >>> from mindone.models.share4v.generation.sampling import Sampling
        >>> Sampling(do_sample=True, top_p=0.9, logit_bias={"13": -5}).logit_bias
        {13: -5.0}
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, (kind, is_valid, expected) in _RULES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not is_valid(value):
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is chosen."""
        return not self.do_sample or self.temperature == 0

    def check_vocabulary(self, size: int) -> None:
        """Check that the model has the tokens that are named here.

        Raises:
            ValueError: logit_bias has an id outside the vocabulary.
        """
        for token_id in self.logit_bias:
            if token_id >= size:
                raise ValueError(f"logit_bias has the id {token_id}, but the vocabulary goes from 0 to {size - 1}")


def _checked_bias(given: Any) -> dict[int, float]:
    """Return a logit_bias as {id: bias}; ids may be strings, as in JSON.

    Raises:
        ValueError: it is not a mapping of ids to finite numbers.
    """
    is_valid = isinstance(given, Mapping) and all(
        (isinstance(key, Integral) or (isinstance(key, str) and key.isdecimal()))
        and not isinstance(key, bool)
        and int(key) >= 0
        and isinstance(value, Real)
        and isfinite(value)
        for key, value in given.items()
    )
    if not is_valid:
        raise ValueError(f"logit_bias must map token ids, 0 or more, to finite numbers, got {given!r:.80}")
    return {int(key): float(value) for key, value in given.items()}


def warp(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return the probabilities [V] after temperature, top_k, top_p and min_p, applied in Hugging Face's order."""
    # The largest score is 0, so that with a very low temperature the others can only overflow to minus infinity.
    with np.errstate(over="ignore"):
        scores = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < scores.size:
        kth = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores = np.where(scores < kth, -np.inf, scores)
    probabilities = softmax(scores)
    if sampling.top_p < 1:
        order = np.argsort(probabilities, kind="stable")  # ascending, as in Hugging Face's warper
        tail = np.cumsum(probabilities[order]) <= 1 - sampling.top_p
        tail[-1] = False  # the most probable token is always kept
        probabilities[order[tail]] = 0
        probabilities /= probabilities.sum()
    if sampling.min_p > 0:
        probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
        probabilities /= probabilities.sum()
    return probabilities


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax over the last axis."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class NoTokenLeftError(ValueError):
    """Every token is forbidden."""


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability that the model gave to a chosen token, and its most probable tokens.

    These are the model's own probabilities: the softmax of its logits, before any setting changes them.

    Attributes:
        token_id: the chosen id.
        logprob: natural logarithm of its probability.
        top: (id, logprob) of the most probable tokens, most probable first; as many as were asked for.

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.generation.sampling import TokenLogprobs
        >>> TokenLogprobs.of(np.zeros(4, np.float32), 2, 1)
        TokenLogprobs(token_id=2, logprob=-1.3862943611198906, top=((0, -1.3862943611198906),))
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, logits: np.ndarray, token_id: int, count: int) -> TokenLogprobs:
        """Return the log-probabilities of `token_id` and of the `count` most probable tokens, from logits [V]."""
        logprobs = log_softmax(logits.astype(np.float64))
        best = np.argsort(-logprobs, kind="stable")[:count]
        return cls(token_id, float(logprobs[token_id]), tuple((int(one), float(logprobs[one])) for one in best))


class Sampler:
    """Chooses the tokens of one sequence, with its own random numbers.

    Args:
        sampling: the settings.
        sequence: number of the sequence among those of one prompt; each has other random numbers from the same seed.
    """

    def __init__(self, sampling: Sampling, sequence: int = 0) -> None:
        self.sampling = sampling
        seed = sampling.seed
        self.random = np.random.default_rng(seed if seed is None or sequence == 0 else [seed, sequence])

    def choose(
        self,
        logits: np.ndarray,
        prompt: np.ndarray,
        new_ids: Sequence[int] = (),
        banned: tuple[int, ...] = (),
        allowed: np.ndarray | None = None,
    ) -> int:
        """Return the next id.

        Args:
            logits: float32 [V].
            prompt: int [T], ids of the prompt, negative at image positions.
            new_ids: ids generated so far.
            banned: ids that must not be chosen in this step.
            allowed: bool [V], the tokens that may be chosen; None for all.

        Raises:
            NoTokenLeftError: no token is left to choose.
        """
        scores = process(logits, prompt, new_ids, self.sampling)
        if banned:
            scores = scores.copy()
            scores[list(banned)] = -np.inf
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        best = int(scores.argmax())
        if scores[best] == -np.inf:
            raise NoTokenLeftError(
                "every token of the vocabulary is forbidden: increase no_repeat_ngram_size, or forbid fewer words"
            )
        if self.sampling.is_greedy:
            return best
        probabilities = warp(scores, self.sampling)
        return int(self.random.choice(probabilities.size, p=probabilities))
