"""Choosing the next token from logits on the host, as Hugging Face's logits processors and warpers do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

# Setting -> its type, a predicate for valid values, and their description for the error message.
_RULES: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "temperature": (Real, lambda value: value >= 0, "a number, 0 or more"),
    "top_k": (Integral, lambda value: value >= 0, "an integer, 0 or more"),
    "top_p": (Real, lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "repetition_penalty": (Real, lambda value: value > 0, "a number above 0"),
    "seed": (Integral | None, lambda value: value is None or value >= 0, "an integer, 0 or more, or None"),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; names and meanings as in Hugging Face's GenerationConfig.

    The defaults differ: top_k is off here, while Hugging Face's is 50.

    Attributes:
        do_sample: sample from the distribution; otherwise choose the most probable token.
        temperature: logits are divided by it; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose total probability reaches this.
        repetition_penalty: logits of tokens that the sequence already contains are divided (if positive) or multiplied
            (if negative) by it (Keskar et al. 2019).
        seed: of the random numbers; None gives different results each time. Each sequence of a batch has its own random
            numbers from the same seed, so its result is the same as in a batch of its own.

    Raises:
        ValueError: a value is outside its range; the message names it.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, is_valid, expected) in _RULES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not is_valid(value):
                raise ValueError(f"{name} must be {expected}, got {value!r}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is chosen."""
        return not self.do_sample or self.temperature == 0


def penalize_repetition(scores: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Return `scores` [V] in which the tokens `seen` are less likely; ids outside [0, V) (placeholders) are ignored."""
    if penalty == 1.0:
        return scores
    ids = np.unique(seen[(seen >= 0) & (seen < scores.shape[-1])])
    scores = scores.copy()
    scores[ids] = np.where(scores[ids] < 0, scores[ids] * penalty, scores[ids] / penalty)
    return scores


def warp(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return the probabilities [V] after temperature, top_k and top_p, applied in Hugging Face's order."""
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
    return probabilities


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax over the last axis."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Sampler:
    """Chooses the tokens of one sequence, with its own random numbers."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.random = np.random.default_rng(sampling.seed)

    def choose(self, logits: np.ndarray, seen: np.ndarray, banned: tuple[int, ...] = ()) -> int:
        """Return the next id.

        Args:
            logits: float32 [V].
            seen: int [T], ids of the sequence so far, for the repetition penalty.
            banned: ids that must not be chosen in this step.
        """
        scores = penalize_repetition(logits, seen, self.sampling.repetition_penalty)
        if banned:
            scores = scores.copy()
            scores[list(banned)] = -np.inf
        if self.sampling.is_greedy:
            return int(scores.argmax())
        probabilities = warp(scores, self.sampling)
        return int(self.random.choice(probabilities.size, p=probabilities))
