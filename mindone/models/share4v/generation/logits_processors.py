"""Changes of a sequence's logits before a token is chosen, in the order of Hugging Face's logits processors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .sampling import Sampling

_LARGEST = 1e30  # of a score, which is float32


def process(scores: np.ndarray, prompt: np.ndarray, new_ids: Sequence[int], sampling: Sampling) -> np.ndarray:
    """Return the scores [V] of the next token after logit_bias, all penalties and no_repeat_ngram_size.

    Args:
        scores: [V], logits, or in beam search log-probabilities; not changed.
        prompt: int [T], ids of the prompt, negative at image positions.
        new_ids: the ids generated so far.
        sampling: the settings.
    """
    changes_seen = sampling.repetition_penalty != 1 or sampling.no_repeat_ngram_size
    if not (changes_seen or sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty):
        return scores
    scores = add_bias(scores, sampling.logit_bias)
    seen = np.concatenate((prompt, np.array(new_ids, np.int64))) if changes_seen else prompt
    scores = penalize_repetition(scores, seen, sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        scores = penalize_frequency(scores, new_ids, sampling.presence_penalty, sampling.frequency_penalty)
    if sampling.no_repeat_ngram_size:
        banned = repeated_ngrams(seen, sampling.no_repeat_ngram_size)
        if len(banned):
            scores = scores.copy()
            scores[banned] = -np.inf
    return scores


def add_bias(scores: np.ndarray, bias: Mapping[int, float]) -> np.ndarray:
    """Return scores [V] with the bias of each id added."""
    if not bias:
        return scores
    scores = scores.copy()
    scores[list(bias)] += np.array(list(bias.values()), scores.dtype)
    return scores


def penalize_frequency(scores: np.ndarray, new_ids: Sequence[int], presence: float, frequency: float) -> np.ndarray:
    """Return scores [V] after OpenAI's penalties: score - count * frequency - (count > 0) * presence.

    `count` is how often the token was generated so far; the prompt does not count.
    """
    if not len(new_ids):
        return scores
    ids, counts = np.unique(np.asarray(new_ids, np.int64), return_counts=True)
    scores = scores.copy()
    scores[ids] -= (counts * frequency + presence).astype(scores.dtype)
    return scores


def penalize_repetition(scores: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Return `scores` [V] in which the tokens `seen` are less likely; ids outside [0, V) (placeholders) are ignored."""
    if penalty == 1.0:
        return scores
    ids = np.unique(seen[(seen >= 0) & (seen < scores.shape[-1])])
    scores, values = scores.copy(), scores[ids]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        changed = np.where(values < 0, values * penalty, values / penalty)
        if not np.isfinite(changed).all():  # a penalty near 0: infinite scores have no probabilities
            exact = values.astype(np.float64)
            changed = np.clip(np.where(exact < 0, exact * penalty, exact / penalty), -_LARGEST, _LARGEST)
    scores[ids] = changed
    return scores


def repeated_ngrams(seen: np.ndarray, size: int) -> np.ndarray:
    """Return the ids that would complete an n-gram that `seen` [T] already contains; none if size is 0.

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.generation.logits_processors import repeated_ngrams
        >>> repeated_ngrams(np.array([4, 5, 6, 9, 4, 5]), 3)
        array([6])
    """
    count = len(seen) - size + 1  # number of n-grams
    if size == 0 or count < 1:
        return np.zeros(0, np.int64)
    matches = np.ones(count, bool)
    for offset in range(size - 1):  # the last size - 1 ids, compared with every n-gram
        matches &= seen[offset : offset + count] == seen[len(seen) - size + 1 + offset]
    last = seen[size - 1 :][matches]
    return np.unique(last[last >= 0])
