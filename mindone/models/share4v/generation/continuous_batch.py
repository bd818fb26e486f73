"""Continuous batching (Yu et al. 2022, Orca): sequences join a running batch while others leave it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from mindspore import Tensor

from ..configuration import TextConfig
from ..nn.host_ops import float32_array
from ..processing.tokenizer import Tokenizer
from ..protocols import CachedLanguageModel, LanguageModel
from .constraints import GrammarCompiler
from .decoding import GenerationSettings, RunningSequence
from .prefill import Prompts, check_finite
from .prefix_cache import PrefixCache, common_length, prompt_keys, text_keys
from .sampling import TokenLogprobs
from .streaming import AnswerText, GenerationPiece

RequestId = TypeVar("RequestId")
_log = logging.getLogger(__name__)
# Tokens of prompts in a pass while no sequence waits for its next token; the kernels process so many rows at once.
ALONE_TOKENS = 256


@dataclass(frozen=True)
class PrefillProgress:
    """How much of a prompt has been processed.

    Attributes:
        prompt_tokens: length of the prompt, image patches included.
        processed_tokens: how many of them are in the KV cache.
        cached_tokens: how many of those were there before.
    """

    prompt_tokens: int
    processed_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Completion(Generic[RequestId]):
    """The result of one request.

    Attributes:
        request_id: as the caller named the request.
        text: the answer, without stop strings and without white space at its ends; what was generated so far if the
            request failed or was cancelled.
        token_ids: the new ids, without the end-of-text token.
        finish_reason: "eos", "stop" (a stop string), "length" (max_new_tokens), "context" (the model's context is
            full), "cancelled" or "error".
        prompt_tokens: tokens of the prompt, image patches included; 0 if the request ended before its prompt was built.
        started: `time.perf_counter()` when the sequence joined the batch; None if it never did.
        error: why the request failed, if finish_reason is "error".
        logprobs: of token_ids, if the settings ask for them; else empty.
        cached_tokens: tokens of the prompt that were in the KV cache before.
        first_token: `time.perf_counter()` when the first new token was chosen; None if none was.
        ended: `time.perf_counter()` when the sequence left the batch; None if it never was in it.
        stop: the stop string that ended the answer, if finish_reason is "stop".
    """

    request_id: RequestId
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str = "error"
    prompt_tokens: int = 0
    started: float | None = None
    error: Exception | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int = 0
    first_token: float | None = None
    ended: float | None = None
    stop: str | None = None


@dataclass(eq=False)
class _Slot(Generic[RequestId]):
    """A sequence in the batch; its index is its row in the KV cache.

    Attributes:
        prompt: float32 [T, H], embeddings of the prompt.
        keys: int64 [T, 2], of the prompt (`prefix_cache.prompt_keys`); empty if prefixes cannot be copied.
        on_prefill: called within `step` each time that a part of the prompt has been processed.
        cached: tokens of the prompt that were in the KV cache before.
        prefilled: tokens of the prompt that are in the KV cache.
        leader: a sequence whose prompt begins in the same way and is being prefilled; this one waits for it.
        shared: tokens that the leader computes for this sequence.
        token_id: the last new token, which is not in the KV cache yet; None while the prompt is being prefilled.
        text: the pieces passed to `on_piece`, joined.
    """

    request_id: RequestId
    prompt: np.ndarray
    sequence: RunningSequence
    answer: AnswerText
    on_piece: Callable[[GenerationPiece], None] | None
    on_prefill: Callable[[PrefillProgress], None] | None
    keys: np.ndarray
    cached: int
    prefilled: int
    started: float
    token_id: int | None = None
    text: str = ""
    first_token: float | None = None
    leader: _Slot[RequestId] | None = None
    shared: int = 0

    def advance(self, logits: np.ndarray) -> str | None:
        """Choose the next token from logits [V] and report it; return the finish reason, or None."""
        self.token_id, reason = self.sequence.advance(check_finite(logits))
        self.first_token = self.first_token or time.perf_counter()
        if self.on_piece is not None:
            taken = self.answer.finish() if reason else self.answer.take()
            self.text += taken
            self.on_piece(
                GenerationPiece(
                    text=taken,
                    index=0,
                    token_id=self.token_id,
                    finish_reason=reason,
                    prompt_tokens=self.sequence.prompt_tokens,
                    generated_tokens=len(self.sequence.token_ids),
                    seconds=time.perf_counter() - self.started,
                    logprobs=self.sequence.logprobs_of(self.token_id),
                )
            )
        return reason

    def completion(self, finish_reason: str, error: Exception | None = None) -> Completion[RequestId]:
        return Completion(
            self.request_id,
            self.text + self.answer.finish(),
            tuple(self.sequence.token_ids),
            finish_reason,
            self.sequence.prompt_tokens,
            self.started,
            error,
            tuple(self.sequence.logprobs),
            self.cached,
            self.first_token,
            time.perf_counter(),
            self.answer.stopped_by if finish_reason == "stop" else None,
        )

    def report_prefill(self) -> None:
        """Call `on_prefill`; an error in it must not end the sequence, much less the batch."""
        if self.on_prefill is not None:
            try:
                self.on_prefill(PrefillProgress(self.sequence.prompt_tokens, self.prefilled, self.cached))
            except Exception:
                _log.exception("on_prefill of request %r raised", self.request_id)

    def held_keys(self) -> np.ndarray:
        """Return the keys [T, 2] of the tokens that are in the KV cache now; the last new token is not."""
        new_ids = self.sequence.token_ids[:-1]
        return np.concatenate((self.keys, text_keys(new_ids))) if new_ids else self.keys[: self.prefilled]


def check_single(settings: GenerationSettings) -> None:
    """Check that the settings ask for one sequence.

    Raises:
        ValueError: they ask for beam search or several answers.
    """
    if settings.num_beams > 1:
        raise ValueError(f"a continuous batch has no beam search: set num_beams=1, got {settings.num_beams}")
    if settings.num_return_sequences > 1:
        raise ValueError(
            f"a request has one answer, got num_return_sequences={settings.num_return_sequences}: make one request for "
            "each, with settings.for_sequence(0), settings.for_sequence(1), ...; they may share an ImageSet"
        )


class ContinuousBatch(Generic[RequestId]):
    """Up to `batch_size` sequences that are decoded together, each from the step it joins until it ends.

    A sequence gets the same ids whichever others are in the batch and whenever it joins; on the CPU kernels its logits
    have the same bits. A prompt whose beginning a row of the KV cache holds, from a sequence that is running or was the
    last in its row, does not compute it again, if the language model can copy it. All methods must be called from one
    thread; `engine.Engine` is the thread-safe layer above.

    Args:
        language_model: of the model.
        config: of the language model.
        tokenizer: of the model.
        batch_size: number of slots.
        grammars: compiles schemas and regular expressions.
        exclusive: makes the context in which the language model runs, so that no other thread uses the model meanwhile.

    Raises:
        ValueError: batch_size is less than 1.

    Example:
        >>> batch = model.continuous_batch(8)  # doctest: +SKIP
        >>> prompts = model.prepare_inputs(**processor(images=["a.jpg"]))  # doctest: +SKIP
        >>> batch.join("a.jpg", prompts, GenerationSettings())  # doctest: +SKIP
        >>> while len(batch):  # doctest: +SKIP
        ...     for completion in batch.step():
        ...         print(completion.request_id, completion.text)
    """

    def __init__(
        self,
        language_model: LanguageModel,
        config: TextConfig,
        tokenizer: Tokenizer,
        batch_size: int,
        grammars: GrammarCompiler,
        exclusive: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self._language_model = language_model
        self._config = config
        self._tokenizer = tokenizer
        self._grammars = grammars
        self._exclusive = exclusive
        with exclusive():
            self._decoder: CachedLanguageModel = language_model.new_cached(batch_size, config.context_length)
        self._slots: list[_Slot[RequestId] | None] = [None] * batch_size
        scaling = config.rope_scaling
        # With dynamic rotary scaling, keys depend on the length of the prompt.
        is_dynamic = scaling is not None and scaling.rope_type == "dynamic"
        self._copies_prefixes = self._decoder.can_copy_prefix and not is_dynamic
        self.prefixes = PrefixCache(batch_size)

    def __len__(self) -> int:
        """Number of sequences in the batch."""
        return sum(slot is not None for slot in self._slots)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._slots) - len(self)

    @property
    def request_ids(self) -> list[RequestId]:
        """The requests in the batch."""
        return [slot.request_id for slot in self._slots if slot is not None]

    def join(
        self,
        request_id: RequestId,
        prompts: Prompts,
        settings: GenerationSettings,
        forbidden: Callable[[Sequence[int]], Collection[int]] = lambda token_ids: (),
        beginning: Sequence[int] = (),
        on_piece: Callable[[GenerationPiece], None] | None = None,
        on_prefill: Callable[[PrefillProgress], None] | None = None,
    ) -> None:
        """Put one sequence into a free slot; the next steps prefill its prompt.

        Args:
            request_id: names the request in its `Completion`; unique in the batch.
            prompts: one prompt (`model.prepare_inputs`).
            settings: length, sampling and stop strings; the end-of-text ids are always the model's.
            forbidden: called with the new ids so far; returns the ids that must not come next.
            beginning: ids at the end of the prompt that are part of the answer's text.
            on_piece: called within `step` with each new piece of the answer.
            on_prefill: called here, and within `step` each time that a part of the prompt has been processed.

        Raises:
            ValueError: no slot is free, `prompts` is not one prompt or fills the model's context, settings ask for
                beam search, more than one answer or a token that the vocabulary does not have, or the batch already
                has a request of this name.
        """
        if not self.free or len(prompts) != 1:
            raise ValueError(f"only one prompt can join a free slot at a time: got {len(prompts)}, {self.free} free")
        check_single(settings)
        settings.check_vocabulary(self._config.vocab_size)
        if request_id in self.request_ids:
            raise ValueError(f"request {request_id!r} is already in the batch: choose another name")
        prompts.check_context(self._config.context_length)
        answer = AnswerText(self._tokenizer, settings.stop)
        for token_id in beginning:
            answer.push(token_id)
        length = int(prompts.lengths[0])
        ids = prompts.ids[0, :length]
        settings = replace(settings, eos_token_ids=self._config.eos_token_ids)
        constraint = self._grammars.constraint(settings.schema, settings.regex)
        sequence = RunningSequence(ids, settings, self._config.context_length, answer.push, forbidden, constraint)
        with self._exclusive():
            embeds = float32_array(prompts.table)[prompts.index[0, :length]]  # [T, H]
        keys = prompt_keys(ids, embeds) if self._copies_prefixes else text_keys(())
        row, cached = self._copy_prefix(keys)
        slot = _Slot(
            request_id, embeds, sequence, answer, on_piece, on_prefill, keys, cached, cached, time.perf_counter()
        )
        self._follow(slot)
        self._slots[row] = slot
        self.prefixes.count(length, cached)
        slot.report_prefill()

    def leave(self, request_id: RequestId) -> Completion[RequestId] | None:
        """Remove a sequence and return what it has generated; None if the batch has no such request."""
        for row, slot in enumerate(self._slots):
            if slot is not None and slot.request_id == request_id:
                self._free(row, slot)
                return slot.completion("cancelled")
        return None

    def _free(self, row: int, slot: _Slot[RequestId]) -> None:
        self._slots[row] = None
        if self._copies_prefixes:
            self.prefixes.store(row, slot.held_keys())

    def step(self) -> list[Completion[RequestId]]:
        """Prefill the next chunk of each new prompt, add one token to every other sequence; return those that ended.

        If the language model skips idle rows, this is a single forward pass (Agrawal et al. 2023, SARATHI): the weights
        are read once for a chunk of a prompt and the other sequences' tokens, and no sequence waits for a prefill.
        A pass has a chunk for each new prompt; the prompt that joined first gets all of them, as far as it needs them:
        together they take as long, but the first answers begin earlier. Otherwise new prompts are prefilled completely,
        in passes of their own.

        An error in one sequence (logits that are not finite, an exception of one of its callbacks) ends that sequence
        with finish_reason "error". If the forward pass gets no memory, the sequence that joined last ends so: first of
        those whose prompts are being processed, which need most. The others are as before the step, because a pass
        writes keys and values only behind those that its sequences have, where the next pass writes them again. What
        else the forward pass raises is raised, because it concerns the whole batch.
        """
        slots = {row: slot for row, slot in enumerate(self._slots) if slot is not None and not self._waits(row, slot)}
        new = {row: slot for row, slot in slots.items() if slot.token_id is None}
        running = {row: slot for row, slot in slots.items() if row not in new}
        try:
            with self._exclusive():
                logits = self._forward(new, running)
        except MemoryError as no_memory:
            row, slot = max((new or running).items(), key=lambda one: one[1].started)
            # The logits of prompts that were completed in an earlier pass of this step are lost.
            ended = {row: slot} | {place: one for place, one in new.items() if one.prefilled >= len(one.prompt)}
            for place, one in ended.items():
                self._free(place, one)
            return [one.completion("error", no_memory) for one in ended.values()]
        completions = []
        not_finite = []
        for row, values in sorted(logits.items()):
            slot = slots[row]
            try:
                reason = slot.advance(values)
                error = None
            except Exception as raised:
                reason, error = "error", raised
                if isinstance(raised, FloatingPointError):
                    not_finite.append(row)
            if reason:
                completions.append(slot.completion(reason, error))
                self._free(row, slot)
        if not_finite:
            self.prefixes.clear(not_finite)
            with self._exclusive():
                self._overwrite(not_finite, [row for row in logits if row not in not_finite])
        return completions

    def _forward(self, new: dict[int, _Slot[RequestId]], running: dict[int, _Slot[RequestId]]) -> dict[int, np.ndarray]:
        """Compute logits [V]: of every running sequence, and of the new prompts that are complete after this step."""
        if new and self._decoder.skips_padding:
            most = max(self._decoder.chunk * len(new), 0 if running else ALONE_TOKENS)
            return self._prefill(self._parts(new, most), running)
        logits = self._decode(running) if running else {}
        while len(logits) < len(new) + len(running):
            waiting = {row: slot for row, slot in new.items() if row not in logits}
            logits |= self._prefill({row: (slot, self._decoder.chunk) for row, slot in waiting.items()}, {})
        return logits

    def _parts(self, new: dict[int, _Slot[RequestId]], most: int) -> dict[int, tuple[_Slot[RequestId], int]]:
        """Return the new sequences of one pass with how many tokens of their prompts it processes, first come first."""
        parts: dict[int, tuple[_Slot[RequestId], int]] = {}
        remaining = most
        for row, slot in sorted(new.items(), key=lambda one: one[1].started):
            count = min(len(slot.prompt) - slot.prefilled, remaining)
            if count:
                parts[row] = slot, count
                remaining -= count
        return parts

    def _decode(self, slots: dict[int, _Slot[RequestId]]) -> dict[int, np.ndarray]:
        """Process the last token of each sequence; return the logits [V] of its next one."""
        ids, positions = np.zeros(len(self._slots), np.int64), np.full(len(self._slots), -1)
        for row, slot in slots.items():
            ids[row], positions[row] = slot.token_id, slot.sequence.position
        logits = self._decoder.decode(ids, positions).asnumpy()  # [B, V]
        return {row: logits[row] for row in slots}

    def _prefill(
        self, new: dict[int, tuple[_Slot[RequestId], int]], running: dict[int, _Slot[RequestId]]
    ) -> dict[int, np.ndarray]:
        """Process the next part of each new prompt, of so many tokens, and the last token of each running sequence.

        Returns the logits [V] of the running sequences and of the prompts that are now complete.
        """
        chunk, rows = max(count for _, count in new.values()), len(self._slots)
        embeds = np.zeros((rows, chunk, self._config.hidden_size), np.float32)
        positions, last, totals = np.full((rows, chunk), -1), np.zeros(rows, np.int64), np.ones(rows, np.int64)
        if running:
            ids = np.array([[slot.token_id for slot in running.values()]], np.int32)  # [1, R]
            running_rows = list(running)
            embeds[running_rows, 0] = self._language_model.embed(Tensor(ids)).asnumpy()[0]
            positions[running_rows, 0] = [slot.sequence.position for slot in running.values()]
            totals[running_rows] = positions[running_rows, 0] + 1
        for row, (slot, count) in new.items():
            part = slot.prompt[slot.prefilled : slot.prefilled + count]
            embeds[row, : len(part)] = part
            positions[row, : len(part)] = np.arange(slot.prefilled, slot.prefilled + len(part))
            totals[row], last[row] = len(slot.prompt), len(part) - 1
        logits = self._decoder.prefill(self._tensor(embeds), positions, totals, last).asnumpy()  # [B, V]
        for row, (slot, count) in new.items():  # only now, since the pass may have failed
            slot.prefilled += min(count, len(slot.prompt) - slot.prefilled)
            if self._copies_prefixes:
                self.prefixes.store(row, slot.keys[: slot.prefilled])
        complete = [row for row, (slot, _) in new.items() if slot.prefilled >= len(slot.prompt)]
        for row in complete:
            slot = new[row][0]
            slot.prompt = slot.prompt[:0].copy()  # frees megabytes; the KV cache has the prompt now
        for slot, _ in new.values():
            slot.report_prefill()
        return {row: logits[row] for row in (*running, *complete)}

    def _tensor(self, embeds: np.ndarray) -> Tensor:
        """Return embeddings in the language model's activation type."""
        tensor = Tensor(embeds)
        if tensor.dtype == self._language_model.activations:
            return tensor
        return tensor.astype(self._language_model.activations)

    def _overwrite(self, rows: list[int], finite_rows: list[int]) -> None:
        """Replace keys and values that may be NaN: masked attention multiplies them by 0, which gives NaN again."""
        idle_rows = [row for row, slot in enumerate(self._slots) if slot is None and row not in rows]
        sources = [*finite_rows, *idle_rows]
        if sources:
            origins = np.arange(len(self._slots))
            origins[rows] = sources[0]
            self._decoder.copy_sequences(self._decoder, origins)
        else:
            self.prefixes.clear()
            del self._decoder  # first, so that there are never two caches
            self._decoder = self._language_model.new_cached(len(self._slots), self._config.context_length)
            for slot in self._slots:
                if slot is not None:  # a prompt that is being prefilled, or waits to be: begin again
                    slot.cached = slot.prefilled = slot.shared = 0
                    slot.leader = None

    def _copy_prefix(self, keys: np.ndarray) -> tuple[int, int]:
        """Choose a free row for a prompt with these keys and copy its known prefix to it; return row and length."""
        free = [row for row, slot in enumerate(self._slots) if slot is None]
        if not self._copies_prefixes:
            return free[0], 0
        row, source, length = self.prefixes.find(keys, free)
        if source is not None and source != row:
            self.prefixes.clear([row])  # what it held is overwritten, also if the copy fails
            with self._exclusive():
                self._decoder.copy_prefix(row, self._decoder, length, source)
        self.prefixes.store(row, keys[:length])
        return row, length

    def _follow(self, slot: _Slot[RequestId]) -> None:
        """Let a new sequence wait for one that is computing the same prefix, if that is at least a chunk longer."""
        if not self._copies_prefixes:
            return
        for other in self._slots:
            if other is not None and other.token_id is None:
                shared = min(common_length(slot.keys, other.keys), len(slot.keys) - 1)
                if shared >= max(slot.shared, slot.prefilled) + self._decoder.chunk:
                    slot.leader, slot.shared = other, shared

    def _waits(self, row: int, slot: _Slot[RequestId]) -> bool:
        """Return whether a sequence still waits for its leader; if the leader has just computed the prefix, copy it."""
        leader = slot.leader
        if leader is None:
            return False
        if leader not in self._slots:  # cancelled, or failed
            slot.leader = None
            return False
        if leader.prefilled < slot.shared:
            return True
        self.prefixes.clear([row])
        with self._exclusive():
            self._decoder.copy_prefix(row, self._decoder, slot.shared, self._slots.index(leader))
        self.prefixes.count(0, slot.shared - slot.prefilled)
        slot.cached = slot.prefilled = slot.shared
        slot.leader = None
        self.prefixes.store(row, slot.keys[: slot.prefilled])
        return False
