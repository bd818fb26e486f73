"""Beam search, equivalent to Hugging Face's `generate(num_beams=...)` with early_stopping=False."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..configuration import TextConfig
from .decoding import GenerationSettings, NewToken, copy_prompts
from .kv_cache import KVCache
from .logits_processors import process
from .prefill import Prompts, prefill, require_finite
from .sampling import log_softmax

# Added to the score of a beam that must not be chosen; as in Hugging Face, far below any log-probability.
EXCLUDED = -1e9


@dataclass
class Beams:
    """The search for the answer to one prompt, with K = settings.num_beams live beams.

    Attributes:
        prompt: int [T], ids of the prompt, for penalties.
        limit: maximum number of new tokens.
        settings: of the generation.
        running: ids of each live beam, best first.
        scores: float64 [K], sum of the log-probabilities of each live beam. All beams are equal at first, so all but
            one are excluded.
        finished: (score, ids) of complete answers, best first, at most K.
        is_done: whether no continuation can improve the result.
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
        self.scores = np.full(self.settings.num_beams, EXCLUDED, np.float64)
        self.scores[0] = 0.0

    def advance(self, logits: np.ndarray) -> np.ndarray:
        """Extend the live beams, given their logits [K, V]; return int [K], the beam that each new beam extends."""
        settings, beams = self.settings, self.settings.num_beams
        length = len(self.running[0]) + 1
        totals = self._log_probabilities(logits) + self.scores[:, None]  # [K, V]
        # Even if every end-of-text id of every beam is among them, enough candidates remain to continue with.
        keep = max(2, 1 + len(settings.eos_token_ids)) * beams
        best = np.argsort(-totals.ravel(), kind="stable")[:keep]
        origins, tokens, scores = best // totals.shape[1], best % totals.shape[1], totals.ravel()[best]
        ends = np.isin(tokens, settings.eos_token_ids) | (length >= self.limit)
        candidates = [[*self.running[origin], int(token)] for origin, token in zip(origins, tokens, strict=True)]
        for rank in np.flatnonzero(ends[:beams]):
            self.finished.append((float(scores[rank] / length**settings.length_penalty), candidates[rank]))
        self.finished = sorted(self.finished, key=lambda entry: -entry[0])[:beams]
        live = np.argsort(-(scores + ends * EXCLUDED), kind="stable")[:beams]
        self.running = [candidates[rank] for rank in live]
        self.scores = (scores + ends * EXCLUDED)[live]
        self.is_done = bool(ends.all()) or not self._can_improve(length)
        return origins[live]

    def _log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        scores = log_softmax(logits)
        for beam, ids in enumerate(self.running):
            scores[beam] = process(scores[beam], self.prompt, ids, self.settings.sampling)
        if len(self.running[0]) < self.settings.min_new_tokens:
            scores[:, list(self.settings.eos_token_ids)] = -np.inf
        return scores

    def _can_improve(self, length: int) -> bool:
        if len(self.finished) < self.settings.num_beams:
            return True
        return bool(self.scores[0] / length**self.settings.length_penalty > self.finished[-1][0])

    def tokens(self, sequence: int, rank: int = 0) -> Iterator[NewToken]:
        """Yield an answer, by default the best one, as the tokens of a sequence; the last has the finish reason."""
        answers = [ids for _, ids in self.finished] or self.running
        ids = answers[min(rank, len(answers) - 1)]
        reason = "length" if len(ids) >= self.settings.max_new_tokens else "context"
        for token_id in ids[:-1]:
            yield NewToken(sequence, token_id, None)
        if ids[-1] in self.settings.eos_token_ids:
            yield NewToken(sequence, None, "eos")
        else:
            yield NewToken(sequence, ids[-1], reason)


def beam_search(
    prompts: Prompts, cache: KVCache, beam_cache: KVCache, config: TextConfig, settings: GenerationSettings
) -> Iterator[NewToken]:
    """Yield the best answers to each prompt, num_return_sequences of them, once all searches are complete.

    Args:
        prompts: the batch.
        cache: stores the prompts, one per row.
        beam_cache: stores the beams; of the same capacity, with at least len(prompts) * num_beams rows.
        config: of the language model.
        settings: the same for all prompts.

    Raises:
        FloatingPointError: the logits are not finite.
    """
    logits = prefill(prompts, cache, config)  # [B, V]
    batch, beams, rows = len(prompts), settings.num_beams, beam_cache.batch_size
    copy_prompts(cache, beam_cache, batch, beams)
    searches = []
    for sequence in range(batch):
        capacity = config.context_length - int(prompts.lengths[sequence])
        prompt = prompts.ids[sequence, : prompts.lengths[sequence]]
        searches.append(Beams(prompt, min(settings.max_new_tokens, capacity), settings))
    step = np.repeat(logits, beams, 0)  # [B * K, V]
    for count in range(settings.max_new_tokens):
        ids, positions, origins = np.zeros(rows, np.int64), np.full(rows, -1), np.arange(rows)
        for sequence, search in enumerate(searches):
            if search.is_done:
                continue
            part = slice(sequence * beams, (sequence + 1) * beams)
            origins[part] = sequence * beams + search.advance(require_finite(step[part], beam_cache))
            if not search.is_done:
                ids[part] = [beam[-1] for beam in search.running]
                positions[part] = prompts.lengths[sequence] + count
        if all(search.is_done for search in searches):
            break
        beam_cache.decoder.copy_sequences(beam_cache.decoder, origins)
        step = beam_cache.decoder.decode(ids, positions).asnumpy()
    count = settings.num_return_sequences
    for sequence in range(batch * count):
        yield from searches[sequence // count].tokens(sequence, sequence % count)
