"""How the next token is chosen from logits: Hugging Face's processors and warpers, on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

# Setting -> its types, whether a value will do, and how to say so.
_RULES: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "temperature": (Real, lambda value: value >= 0, "a number, 0 or more"),
    "top_k": (Integral, lambda value: value >= 0, "an integer, 0 or more"),
    "top_p": (Real, lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "repetition_penalty": (Real, lambda value: value > 0, "a number above 0"),
    "seed": (Integral | None, lambda value: value is None or value >= 0, "an integer, 0 or more, or None"),
}


@dataclass(frozen=True)
class Sampling:
    """Settings of one generation, named as in Hugging Face's GenerationConfig.

    Their meanings are the same, their defaults are not: top_k is off here, 50 there.

    Attributes:
        do_sample: draw from the distribution; otherwise take the most probable token.
        temperature: logits are divided by it; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this.
        repetition_penalty: logits of tokens that the text has already are divided (positive ones) or multiplied
            (negative ones) by it (Keskar et al. 2019).
        seed: of the draws; None draws differently each time. Each text of a batch draws for itself from the same seed,
            so that it gets what it would get alone.

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
        for name, (kind, holds, expected) in _RULES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not holds(value):
                raise ValueError(f"{name} must be {expected}, got {value!r}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return not self.do_sample or self.temperature == 0


def penalize_repetition(scores: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Return `scores` [V] with the tokens `seen` made less likely; ids outside [0, V) (placeholders) are left out."""
    if penalty == 1.0:
        return scores
    ids = np.unique(seen[(seen >= 0) & (seen < scores.shape[-1])])
    scores = scores.copy()
    scores[ids] = np.where(scores[ids] < 0, scores[ids] * penalty, scores[ids] / penalty)
    return scores


def warp(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return the probabilities [V] left by temperature, top_k and top_p, in Hugging Face's order."""
    # With nothing above 0 left to divide, no temperature is too low: a quotient grows towards minus infinity alone.
    with np.errstate(over="ignore"):
        scores = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < scores.size:
        kth = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores = np.where(scores < kth, -np.inf, scores)
    probabilities = softmax(scores)
    if sampling.top_p < 1:
        order = np.argsort(probabilities, kind="stable")  # rising: the tail goes first, as in Hugging Face's warper
        tail = np.cumsum(probabilities[order]) <= 1 - sampling.top_p
        tail[-1] = False  # the most probable token always stays
        probabilities[order[tail]] = 0
        probabilities /= probabilities.sum()
    return probabilities


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithm of softmax over the last axis."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Sampler:
    """Chooses tokens for one text, with its own stream of random numbers."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.random = np.random.default_rng(sampling.seed)

    def choose(self, logits: np.ndarray, seen: np.ndarray, banned: tuple[int, ...] = ()) -> int:
        """Return the next id for logits [V], given the ids the text has `seen` and those `banned` for now."""
        scores = penalize_repetition(logits, seen, self.sampling.repetition_penalty)
        if banned:
            scores = scores.copy()
            scores[list(banned)] = -np.inf
        if self.sampling.is_greedy:
            return int(scores.argmax())
        probabilities = warp(scores, self.sampling)
        return int(self.random.choice(probabilities.size, p=probabilities))
