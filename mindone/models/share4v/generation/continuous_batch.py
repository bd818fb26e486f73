"""Continuous batching (Yu et al. 2022, Orca): texts join a running batch as others leave it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from mindspore import Tensor

from ..configuration import TextConfig
from ..nn.host_ops import float32_array
from ..processing.tokenizer import Tokenizer
from ..protocols import CachedLanguageModel, LanguageModel
from .decoding import GenerationSettings, RunningText
from .prefill import Prompts, check_finite
from .streaming import AnswerText

RequestId = TypeVar("RequestId")
_SHORTEST_PREFIX = 8  # tokens; fewer are computed sooner than copied


@dataclass(frozen=True)
class FinishedText(Generic[RequestId]):
    """A text that has left the batch.

    Attributes:
        ticket: what it was called when it joined.
        text: the answer, ending before the first stop string; no white space around it.
        token_ids: the new ids, without the end-of-text token.
        finish_reason: "eos", "stop", "length" or "context".
        prompt_tokens: tokens of the prompt, image patches counted.
    """

    ticket: RequestId
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int


@dataclass
class _Slot(Generic[RequestId]):
    """A place in the batch that a text has taken."""

    ticket: RequestId
    prompt: np.ndarray  # embeddings [T, H]
    running: RunningText
    answer: AnswerText
    start: int  # tokens of the prompt that the cache holds already
    token_id: int | None = None  # the last one, which the cache does not hold yet; None: the prompt is not whole there


class ContinuousBatch(Generic[RequestId]):
    """Up to `batch_size` texts that are decoded together, each from when it joins until it ends.

    On the CPU kernels a text gets the same bits whatever its neighbours are, so that joining late or early, alone or in
    company, gives the same ids. What all prompts say before their image is computed once, where the language model can
    copy it.

    Example:
        >>> batch = model.continuous_batch(8)  # doctest: +SKIP
        >>> prompts = model.prepare_inputs(**processor(images=["a.jpg"]))  # doctest: +SKIP
        >>> batch.join("a.jpg", prompts, GenerationSettings())  # doctest: +SKIP
        >>> while len(batch):  # doctest: +SKIP
        ...     for finished in batch.step():
        ...         print(finished.ticket, finished.text)
    """

    def __init__(
        self, language_model: LanguageModel, config: TextConfig, tokenizer: Tokenizer, batch_size: int
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self._language_model, self._config, self._tokenizer = language_model, config, tokenizer
        self._decoder: CachedLanguageModel = language_model.new_cached(batch_size, config.context_length)
        self._seats: list[_Slot[RequestId] | None] = [None] * batch_size
        self._prefix: tuple[np.ndarray, CachedLanguageModel] | None = None

    def __len__(self) -> int:
        """How many texts are in the batch."""
        return sum(seat is not None for seat in self._seats)

    @property
    def free(self) -> int:
        """How many more texts can join."""
        return len(self._seats) - len(self)

    def join(
        self,
        ticket: RequestId,
        prompts: Prompts,
        settings: GenerationSettings,
        stops: Sequence[str] = (),
        forbidden: Callable[[Sequence[int]], Collection[int]] = lambda token_ids: (),
        beginning: Sequence[int] = (),
    ) -> None:
        """Give one text (`model.prepare_inputs`) a free place; the next steps take it in.

        Args:
            ticket: comes back with the finished text.
            prompts: one text.
            settings: how far to generate and how to choose; what ends a text is the model's to say.
            stops: strings before which the text ends.
            forbidden: told the new ids so far, returns those that must not come next.
            beginning: ids at the prompt's end that belong to the answer's text.

        Raises:
            ValueError: no place is free, there are more texts than one, or the prompt fills the model's context.
        """
        if not self.free or len(prompts) != 1:
            raise ValueError(f"{len(prompts)} texts want to join, {self.free} places are free, one may join at a time")
        length = int(prompts.lengths[0])
        if length >= self._config.context_length:
            raise ValueError(
                f"the prompt has {length} tokens with its images, the model's context {self._config.context_length}"
            )
        answer = AnswerText(self._tokenizer, stops)
        for token_id in beginning:
            answer.push(token_id)
        ids = prompts.ids[0, :length]
        settings = replace(settings, eos_token_ids=self._config.eos_token_ids)
        running = RunningText(ids, settings, self._config.context_length, answer.push, forbidden)
        embeds = float32_array(prompts.table)[prompts.index[0, :length]]
        place = self._seats.index(None)
        start = self._copy_prefix(place, ids, embeds)
        self._seats[place] = _Slot(ticket, embeds, running, answer, start)

    def step(self) -> list[FinishedText[RequestId]]:
        """Take in a part of each new prompt, add a token to every other text, and return the texts that ended.

        Where the language model skips idle rows, both are one run of it (Agrawal et al. 2023, SARATHI): what a chunk of
        a prompt and the others' tokens need of the weights is read once, and nobody waits while a prompt is taken in.
        Elsewhere new prompts are taken in whole, in runs of their own.
        """
        seats = {place: seat for place, seat in enumerate(self._seats) if seat is not None}
        new = {place: seat for place, seat in seats.items() if seat.token_id is None}
        running = {place: seat for place, seat in seats.items() if place not in new}
        if new and self._decoder.skips_idle_rows:
            logits = self._prefill(new, running)
        else:
            logits = self._decode(running) if running else {}
            while len(logits) < len(seats):
                logits |= self._prefill({place: seat for place, seat in new.items() if place not in logits}, {})
        finished = []
        for place, row in sorted(logits.items()):
            seat = seats[place]
            seat.token_id, reason = seat.running.advance(check_finite(row))
            if reason:
                finished.append(_finish(seat, reason))
                self._seats[place] = None
        return finished

    def _decode(self, seats: dict[int, _Slot[RequestId]]) -> dict[int, np.ndarray]:
        """Take in the last token of each text; return the logits of its next one."""
        ids, positions = np.zeros(len(self._seats), np.int64), np.full(len(self._seats), -1)
        for place, seat in seats.items():
            ids[place], positions[place] = seat.token_id, seat.running.position
        logits = self._decoder.decode(ids, positions).asnumpy()
        return {place: logits[place] for place in seats}

    def _prefill(self, new: dict[int, _Slot[RequestId]], running: dict[int, _Slot[RequestId]]) -> dict[int, np.ndarray]:
        """Take in the next chunk of each new prompt and the last token of each running text.

        Returns the logits of texts that have something to go on from.
        """
        size, rows = self._decoder.chunk, len(self._seats)
        embeds = np.zeros((rows, size, self._config.hidden_size), np.float32)
        positions, last, totals = np.full((rows, size), -1), np.zeros(rows, np.int64), np.ones(rows, np.int64)
        if running:
            ids = np.array([[seat.token_id for seat in running.values()]], np.int32)
            places = list(running)
            embeds[places, 0] = self._language_model.embed(Tensor(ids)).asnumpy()[0]
            positions[places, 0] = [seat.running.position for seat in running.values()]
            totals[places] = positions[places, 0] + 1
        for place, seat in new.items():
            part = seat.prompt[seat.start : seat.start + size]
            embeds[place, : len(part)] = part
            positions[place, : len(part)] = np.arange(seat.start, seat.start + len(part))
            totals[place], last[place] = len(seat.prompt), len(part) - 1
            seat.start += len(part)
        logits = self._decoder.prefill(self._tensor(embeds), positions, totals, last).asnumpy()
        whole = [place for place, seat in new.items() if seat.start >= len(seat.prompt)]
        for place in whole:
            new[place].prompt = new[place].prompt[:0].copy()  # the cache holds it now; here it is megabytes
        return {place: logits[place] for place in (*running, *whole)}

    def _tensor(self, embeds: np.ndarray) -> Tensor:
        """Embeddings in the type that the language model computes in."""
        tensor = Tensor(embeds)
        return (
            tensor
            if tensor.dtype == self._language_model.activations
            else tensor.astype(self._language_model.activations)
        )

    def _copy_prefix(self, place: int, ids: np.ndarray, embeds: np.ndarray) -> int:
        """Copy what the prompt has in common with all others into its place; return how many tokens that were."""
        scaling = self._config.rope_scaling
        if not self._decoder.shares_prefixes or (scaling is not None and scaling.rope_type == "dynamic"):
            return 0  # dynamic rotary scaling turns keys by the whole prompt's length
        if self._prefix is None:
            length = int(np.argmax(ids < 0)) if (ids < 0).any() else len(ids) - 1
            if length < _SHORTEST_PREFIX:
                return 0
            self._prefix = ids[:length].copy(), self._computed(embeds[:length])
        held, source = self._prefix
        most = min(len(held), len(ids) - 1)  # the answer begins with the logits of the last token
        differs = ids[:most] != held[:most]
        common = int(np.argmax(differs)) if differs.any() else most
        if common < _SHORTEST_PREFIX:
            return 0
        self._decoder.copy_prefix(place, source, common)
        return common

    def _computed(self, embeds: np.ndarray) -> CachedLanguageModel:
        """Return a cache of one text that holds a beginning of prompts."""
        decoder = self._language_model.new_cached(1, self._config.context_length)
        size, total = decoder.chunk, np.array([len(embeds)])
        for first in range(0, len(embeds), size):
            part = np.zeros((1, size, embeds.shape[1]), np.float32)
            count = len(embeds[first : first + size])
            part[0, :count] = embeds[first : first + size]
            positions = np.where(np.arange(size) < count, np.arange(first, first + size), -1)[None]
            decoder.prefill(self._tensor(part), positions, total, np.array([count - 1]))
        return decoder


def _finish(seat: _Slot[RequestId], reason: str) -> FinishedText[RequestId]:
    running = seat.running
    return FinishedText(
        seat.ticket, seat.answer.finish().strip(), tuple(running.token_ids), reason, running.prompt_tokens
    )
