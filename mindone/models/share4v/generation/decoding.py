"""Generation settings, and the loop that generates token ids for a batch of sequences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..configuration import TextConfig
from .kv_cache import KVCache
from .prefill import Prompts, prefill, require_finite
from .sampling import Sampler, Sampling

MAX_NEW_TOKENS = 256  # the default; the model was trained on captions of this length


@dataclass(frozen=True)
class GenerationSettings:
    """Validated settings of one generation: its length, how tokens are chosen, and what ends it.

    This is the only place where settings are validated; see `from_arguments` for the flat names of `generate`.

    Attributes:
        max_new_tokens: maximum number of new tokens.
        min_new_tokens: the end-of-text token is not chosen before this many new tokens.
        sampling: how a token is chosen.
        num_beams: beam width; 1 turns beam search off.
        length_penalty: beam scores are divided by length to this power.
        eos_token_ids: ids that end an answer.
        stop: strings that end an answer.

    Raises:
        ValueError: a value is outside its range, or beam search is combined with sampling or with stop strings.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    min_new_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    num_beams: int = 1
    length_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = (2,)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, minimum in (("max_new_tokens", 1), ("min_new_tokens", 0), ("num_beams", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < minimum:
                raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) must not exceed max_new_tokens ({self.max_new_tokens})"
            )
        if self.num_beams > 1 and not self.sampling.is_greedy:
            raise ValueError("num_beams and do_sample cannot be combined: set num_beams=1 or do_sample=False")
        object.__setattr__(self, "stop", stop_strings(self.stop))
        if self.num_beams > 1 and self.stop:
            raise ValueError("num_beams and stop strings cannot be combined: set num_beams=1 or omit stop")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], eos_token_ids: tuple[int, ...] = (2,)) -> GenerationSettings:
        """Build settings from keyword arguments of `generate`; a missing one takes its default.

        Raises:
            TypeError: a name is not a setting of `generate`.
            ValueError: as for the constructor and `Sampling`.

        Example:
            >>> from mindone.models.share4v.generation.decoding import GenerationSettings
            >>> settings = GenerationSettings.from_arguments({"max_new_tokens": 8, "do_sample": True, "stop": "."})
            >>> settings.max_new_tokens, settings.sampling.do_sample, settings.stop
            (8, True, ('.',))
        """
        own = dict(arguments)
        sampling = Sampling(**{name: own.pop(name) for name in Sampling.__dataclass_fields__ if name in own})
        stop = stop_strings(own.pop("stop", None))
        return cls(sampling=sampling, eos_token_ids=eos_token_ids, stop=stop, **own)


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the argument `stop` of `generate` as a tuple.

    Raises:
        ValueError: an entry is empty or not a string.
    """
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(entry, str) and entry for entry in stops):
        raise ValueError(f"each stop string must be a string of at least one character, got {stop!r}")
    return stops


@dataclass(frozen=True)
class NewToken:
    """One generated token of one sequence.

    Attributes:
        sequence: index of the sequence in the batch.
        token_id: the new id; None if the sequence ended with its end-of-text token.
        finish_reason: None while the sequence continues; else "eos", "stop" (a stop string), "length" (max_new_tokens)
            or "context" (the model's context is full).
    """

    sequence: int
    token_id: int | None
    finish_reason: str | None


class RunningSequence:
    """One sequence that is being generated: its tokens so far and the choice of the next one.

    Args:
        prompt: int [T], ids of the prompt, -1 at image positions.
        settings: length and sampling.
        context_length: of the model, in tokens.
        is_stopped: called with each new id; True ends the sequence with reason "stop".
        forbidden: called with the new ids so far; returns the ids that must not come next.
    """

    def __init__(
        self,
        prompt: np.ndarray,
        settings: GenerationSettings,
        context_length: int,
        is_stopped: Callable[[int], bool] = lambda token_id: False,
        forbidden: Callable[[Sequence[int]], Collection[int]] = lambda token_ids: (),
    ) -> None:
        self.settings = settings
        self.context_length = context_length
        self.prompt_tokens = len(prompt)
        self.token_ids: list[int] = []
        self._prompt = prompt
        self._sampler = Sampler(settings.sampling)
        self._is_stopped = is_stopped
        self._forbidden = forbidden

    @property
    def position(self) -> int:
        """Position of the last token, counted from the start of the prompt."""
        return self.prompt_tokens + len(self.token_ids) - 1

    def advance(self, logits: np.ndarray) -> tuple[int | None, str | None]:
        """Choose the next token from logits [V]; return (token id, finish reason) as in `NewToken`."""
        settings = self.settings
        banned = settings.eos_token_ids if len(self.token_ids) < settings.min_new_tokens else ()
        seen = np.concatenate((self._prompt, np.array(self.token_ids, np.int64)))
        token_id = self._sampler.choose(logits, seen, (*banned, *self._forbidden(self.token_ids)))
        if token_id in settings.eos_token_ids:
            return None, "eos"
        self.token_ids.append(token_id)
        return token_id, self._finish_reason(token_id)

    def _finish_reason(self, token_id: int) -> str | None:
        if self._is_stopped(token_id):
            return "stop"
        if len(self.token_ids) >= self.settings.max_new_tokens:
            return "length"
        return "context" if self.position + 1 >= self.context_length else None


def generate_tokens(
    prompts: Prompts,
    cache: KVCache,
    config: TextConfig,
    settings: GenerationSettings,
    is_stopped: Callable[[int, int], bool] = lambda sequence, token_id: False,
) -> Iterator[NewToken]:
    """Yield the tokens of all sequences as they are chosen, sequence by sequence within a step.

    A sequence gets the same tokens as in a batch of its own.

    Args:
        prompts: the batch.
        cache: at least as many rows as there are prompts.
        config: of the language model.
        settings: the same for all sequences.
        is_stopped: called with (sequence, token id) for each new token; True ends the sequence with reason "stop".

    Raises:
        FloatingPointError: the logits are not finite.
        RuntimeError: another call used `cache` before this one was complete.
    """
    logits = prefill(prompts, cache, config)  # [B, V]
    turn, rows = cache.turn, cache.batch_size
    sequences = [
        RunningSequence(
            prompts.ids[number, : prompts.lengths[number]], settings, config.context_length, partial(is_stopped, number)
        )
        for number in range(len(prompts))
    ]
    ids, positions = np.zeros(rows, np.int64), np.full(rows, -1)
    active = list(range(len(prompts)))
    while active:
        for number in list(active):
            token_id, reason = sequences[number].advance(logits[number])
            if reason:
                active.remove(number)
                positions[number] = -1
            else:
                ids[number], positions[number] = token_id, sequences[number].position
            yield NewToken(number, token_id, reason)
        if active:
            cache.check(turn)  # between two tokens the caller may have used the cache for something else
            logits = cache.decoder.decode(ids, positions).asnumpy()
            require_finite(logits[active], cache)
