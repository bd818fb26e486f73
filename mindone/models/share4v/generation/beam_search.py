"""Beam search as Hugging Face's `generate(num_beams=...)` does it (early_stopping=False)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..configuration import TextConfig
from .decoding import GenerationSettings
from .kv_cache import KVCache
from .prefill import Prompts, finite, prefill
from .sampling import log_softmax, penalize_repetition

# What a beam that must not be chosen loses; as in Hugging Face's search, far more than any log-probability.
OUT = -1e9


@dataclass
class Beams:
    """The search of one text.

    Attributes:
        prompt: ids of the prompt, for the repetition penalty.
        limit: most tokens of the answer.
        running: ids of each live beam, best first.
        scores: float [K], sum of log-probabilities of each live beam; at first only one counts, since all are equal.
        finished: (score, ids) of complete answers, best first, at most K.
        is_done: whether nothing can be improved any more.
    """

    prompt: np.ndarray
    limit: int
    settings: GenerationSettings
    running: list[list[int]] = field(default_factory=list)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    is_done: bool = False

    def __post_init__(self) -> None:
        self.running = [[] for _ in range(self.settings.num_beams)]
        self.scores = np.full(self.settings.num_beams, OUT, np.float64)
        self.scores[0] = 0.0

    def advance(self, logits: np.ndarray) -> np.ndarray:
        """Take logits [K, V] of the live beams; return int [K], the beam that each new live beam goes on from."""
        settings, beams = self.settings, self.settings.num_beams
        length = len(self.running[0]) + 1
        totals = self._log_probabilities(logits) + self.scores[:, None]  # [K, V]
        keep = max(2, 1 + len(settings.eos_token_ids)) * beams
        best = np.argsort(-totals.ravel(), kind="stable")[:keep]
        origins, tokens, scores = best // totals.shape[1], best % totals.shape[1], totals.ravel()[best]
        ends = np.isin(tokens, settings.eos_token_ids) | (length >= self.limit)
        candidates = [[*self.running[origin], int(token)] for origin, token in zip(origins, tokens, strict=True)]
        for rank in np.flatnonzero(ends[:beams]):
            self.finished.append((float(scores[rank] / length**settings.length_penalty), candidates[rank]))
        self.finished = sorted(self.finished, key=lambda entry: -entry[0])[:beams]
        live = np.argsort(-(scores + ends * OUT), kind="stable")[:beams]
        self.running = [candidates[rank] for rank in live]
        self.scores = (scores + ends * OUT)[live]
        self.is_done = bool(ends.all()) or not self._can_improve(length)
        return origins[live]

    def _log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        scores = log_softmax(logits)
        for beam, ids in enumerate(self.running):
            seen = np.concatenate((self.prompt, np.array(ids, np.int64)))
            scores[beam] = penalize_repetition(scores[beam], seen, self.settings.sampling.repetition_penalty)
        if len(self.running[0]) < self.settings.min_new_tokens:
            scores[:, list(self.settings.eos_token_ids)] = -np.inf
        return scores

    def _can_improve(self, length: int) -> bool:
        if len(self.finished) < self.settings.num_beams:
            return True
        return bool(self.scores[0] / length**self.settings.length_penalty > self.finished[-1][0])

    @property
    def answer(self) -> list[int]:
        """The best answer's ids, without the end-of-text token."""
        ids = self.finished[0][1] if self.finished else self.running[0]
        return ids[:-1] if ids and ids[-1] in self.settings.eos_token_ids else ids


def beam_search(
    prompts: Prompts, cache: KVCache, beam_cache: KVCache, config: TextConfig, settings: GenerationSettings
) -> list[list[int]]:
    """Return the best answer's ids for each text.

    Args:
        cache: takes the prompts, one row a text.
        beam_cache: of equal capacity, at least len(prompts) * num_beams rows; holds the beams.
    """
    logits = prefill(prompts, cache, config)
    batch, beams, rows = len(prompts), settings.num_beams, beam_cache.batch_size
    beam_cache.begin()
    searches = []
    for text in range(batch):
        room = config.context_length - int(prompts.lengths[text])
        prompt = prompts.ids[text, : prompts.lengths[text]]
        searches.append(Beams(prompt, min(settings.max_new_tokens, room), settings))
    step = np.repeat(logits, beams, 0)  # [B * K, V]
    origins = np.zeros(rows, np.int64)
    origins[: batch * beams] = np.repeat(np.arange(batch), beams)
    beam_cache.decoder.take(cache.decoder, origins)
    for count in range(settings.max_new_tokens):
        ids, positions, origins = np.zeros(rows, np.int64), np.full(rows, -1), np.arange(rows)
        for text, search in enumerate(searches):
            if search.is_done:
                continue
            part = slice(text * beams, (text + 1) * beams)
            origins[part] = text * beams + search.advance(finite(step[part], beam_cache))
            if not search.is_done:
                ids[part] = [beam[-1] for beam in search.running]
                positions[part] = prompts.lengths[text] + count
        if all(search.is_done for search in searches):
            break
        beam_cache.decoder.take(beam_cache.decoder, origins)
        step = beam_cache.decoder.decode(ids, positions).asnumpy()
    return [search.answer for search in searches]
