"""Generation settings, and the loop that generates token ids for a batch of sequences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..configuration import TextConfig
from ..suggestions import unknown
from .constraints import Constraint, GrammarError, Schema
from .kv_cache import KVCache
from .prefill import Prompts, prefill, require_finite
from .sampling import NoTokenLeftError, Sampler, Sampling, TokenLogprobs

MAX_NEW_TOKENS = 256  # the default; the model was trained on captions of this length
# Setting -> its minimum.
_MINIMUMS = {
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "logprobs": 0,
    "sequence": 0,
}


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
        eos_token_id: an id, or several, that end an answer in addition to the model's own; not with a schema or regex.
        eos_token_ids: the model's own ids that end an answer, and those of eos_token_id.
        stop: strings that end an answer.
        num_return_sequences: answers to each prompt: with sampling, other draws from the same distribution; with beam
            search, the best beams.
        logprobs: report the log-probability of each chosen token, and this many of the most probable tokens with
            theirs (`TokenLogprobs`); None reports nothing.
        schema: JSON schema that the answer matches; needs llguidance. An answer that would not be complete within
            max_new_tokens is completed in a short way, with the finish reason "length". Stop strings can still cut it.
        regex: regular expression that the answer matches, in the same way.
        sequence: number of this answer among the num_return_sequences of its prompt; see `for_sequence`.

    Raises:
        ValueError: a value is outside its range, or settings contradict each other, such as beam search and sampling.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    min_new_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    num_beams: int = 1
    length_penalty: float = 1.0
    eos_token_id: int | Sequence[int] | None = None
    eos_token_ids: tuple[int, ...] = (2,)
    stop: tuple[str, ...] = ()
    num_return_sequences: int = 1
    logprobs: int | None = None
    schema: Schema | None = field(default=None, hash=False)
    regex: str | None = None
    sequence: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        for name, minimum in _MINIMUMS.items():
            value = getattr(self, name)
            if name == "logprobs" and value is None:
                continue
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < minimum:
                raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) must not exceed max_new_tokens ({self.max_new_tokens})"
            )
        if self.num_beams > 1 and not self.sampling.is_greedy:
            raise ValueError("num_beams and do_sample cannot be combined: set num_beams=1 or do_sample=False")
        extra = end_ids(self.eos_token_id)
        if (self.schema is not None or self.regex is not None) and not set(extra) <= set(self.eos_token_ids):
            raise ValueError(
                f"eos_token_id ({self.eos_token_id!r}) and a schema or regex cannot be combined, because an answer "
                f"that it ends would not match: omit eos_token_id, or give the model's own ({list(self.eos_token_ids)})"
            )
        object.__setattr__(self, "eos_token_id", extra or None)
        object.__setattr__(self, "eos_token_ids", tuple(dict.fromkeys((*self.eos_token_ids, *extra))))
        object.__setattr__(self, "stop", stop_strings(self.stop))
        if self.num_beams > 1 and self.stop:
            raise ValueError("num_beams and stop strings cannot be combined: set num_beams=1 or omit stop")
        if self.num_beams > 1 and self.logprobs is not None:
            raise ValueError("num_beams and logprobs cannot be combined: set num_beams=1 or omit logprobs")
        if self.schema is not None and self.regex is not None:
            raise ValueError("schema and regex cannot be combined: give one of them")
        if self.num_beams > 1 and (self.schema is not None or self.regex is not None):
            raise ValueError("num_beams and a schema or regex cannot be combined: set num_beams=1")
        self._check_sequences()

    def _check_sequences(self) -> None:
        count = self.num_return_sequences
        if self.num_beams > 1 and count > self.num_beams:
            raise ValueError(f"num_return_sequences ({count}) must not exceed num_beams ({self.num_beams})")
        if self.num_beams == 1 and count > 1 and self.sampling.is_greedy:
            raise ValueError(
                f"num_return_sequences is {count}, but greedy decoding gives the same answer each time: set "
                "do_sample=True and a temperature above 0, or num_beams"
            )

    def for_sequence(self, number: int) -> GenerationSettings:
        """Return the settings with which sequence `number` of num_return_sequences is generated in a batch of its own.

        An `Engine` generates one answer per request, so num_return_sequences of them are that many requests.

        Raises:
            ValueError: there is no such sequence, or these are settings of beam search.

        Example:
            >>> from mindone.models.share4v.generation.decoding import GenerationSettings
            >>> settings = GenerationSettings.from_arguments({"num_return_sequences": 2, "do_sample": True, "seed": 1})
            >>> [settings.for_sequence(number).num_return_sequences for number in (0, 1)]
            [1, 1]
        """
        if self.num_beams > 1 or not 0 <= number < self.num_return_sequences:
            raise ValueError(
                f"there is no sequence {number}: num_return_sequences is {self.num_return_sequences}, and num_beams "
                f"{self.num_beams} (must be 1)"
            )
        return replace(self, num_return_sequences=1, sequence=self.sequence + number)

    def check_vocabulary(self, size: int) -> None:
        """Check the token ids that are named in the settings.

        Raises:
            ValueError: an id is outside the vocabulary of `size` tokens.
        """
        self.sampling.check_vocabulary(size)
        for token_id in end_ids(self.eos_token_id):
            if token_id >= size:
                raise ValueError(f"eos_token_id has the id {token_id}, but the vocabulary has {size} tokens")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], eos_token_ids: tuple[int, ...] = (2,)) -> GenerationSettings:
        """Build settings from keyword arguments of `generate`; one that is missing or None takes its default.

        Raises:
            TypeError: a name is not a setting of `generate`; the message has the closest one.
            ValueError: as for the constructor and `Sampling`.

        Example:
            >>> from mindone.models.share4v.generation.decoding import GenerationSettings
            >>> settings = GenerationSettings.from_arguments({"max_new_tokens": 8, "do_sample": True, "stop": "."})
            >>> settings.max_new_tokens, settings.sampling.do_sample, settings.stop
            (8, True, ('.',))
        """
        known = [*cls.__dataclass_fields__, *Sampling.__dataclass_fields__]
        known = [name for name in known if name not in ("sampling", "eos_token_ids", "sequence")]
        for name in arguments:
            if name not in known:
                raise TypeError(unknown("setting", name, known))
        own = {name: value for name, value in arguments.items() if value is not None}
        sampling = Sampling(**{name: own.pop(name) for name in Sampling.__dataclass_fields__ if name in own})
        stop = stop_strings(own.pop("stop", None))
        return cls(sampling=sampling, eos_token_ids=eos_token_ids, stop=stop, **own)


def end_ids(eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the argument `eos_token_id` of `generate` as a tuple.

    Raises:
        ValueError: it is neither a token id nor a sequence of them.
    """
    if eos_token_id is None:
        return ()
    ids = [eos_token_id] if isinstance(eos_token_id, (int, np.integer)) else list(eos_token_id)
    for one in ids:
        if not isinstance(one, (int, np.integer)) or isinstance(one, bool) or one < 0:
            raise ValueError(f"eos_token_id must be a token id or a list of them, got {eos_token_id!r}")
    return tuple(map(int, ids))


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
        logprobs: of the new token, if they were asked for; None for the end-of-text token.
    """

    sequence: int
    token_id: int | None
    finish_reason: str | None
    logprobs: TokenLogprobs | None = None


class RunningSequence:
    """One sequence that is being generated: its tokens so far and the choice of the next one.

    Args:
        prompt: int [T], ids of the prompt, -1 at image positions.
        settings: length and sampling.
        context_length: of the model, in tokens.
        is_stopped: called with each new id; True ends the sequence with reason "stop".
        forbidden: called with the new ids so far; returns the ids that must not come next.
        constraint: says which tokens may come next.

    Raises:
        GrammarError: no text that matches the constraint fits into the maximum length.
    """

    def __init__(
        self,
        prompt: np.ndarray,
        settings: GenerationSettings,
        context_length: int,
        is_stopped: Callable[[int], bool] = lambda token_id: False,
        forbidden: Callable[[Sequence[int]], Collection[int]] = lambda token_ids: (),
        constraint: Constraint | None = None,
    ) -> None:
        self.settings = settings
        self.context_length = context_length
        self.prompt_tokens = len(prompt)
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []  # of token_ids, if the settings ask for them
        self._prompt = prompt
        self._sampler = Sampler(settings.sampling, settings.sequence)
        self._is_stopped = is_stopped
        self._forbidden = forbidden
        self._constraint = constraint
        if constraint is not None and len(constraint.ending) > self._capacity:
            raise GrammarError(
                f"an answer that matches needs {len(constraint.ending)} tokens, but only {max(self._capacity, 0)} are "
                "allowed: increase max_new_tokens, or shorten the prompt if the model's context is full"
            )

    @property
    def position(self) -> int:
        """Position of the last token, counted from the start of the prompt."""
        return self.prompt_tokens + len(self.token_ids) - 1

    def advance(self, logits: np.ndarray) -> tuple[int | None, str | None]:
        """Choose the next token from logits [V]; return (token id, finish reason) as in `NewToken`."""
        settings = self.settings
        token_id = self._choose(logits)
        if token_id in settings.eos_token_ids:
            return None, "eos" if self._constraint is None or not self._constraint.is_cut else self._limit
        self.token_ids.append(token_id)
        if settings.logprobs is not None:
            self.logprobs.append(TokenLogprobs.of(logits, token_id, settings.logprobs))
        return token_id, self._finish_reason(token_id)

    def _choose(self, logits: np.ndarray) -> int:
        """Choose the next token; with a constraint, one that can still be followed by an end of the text."""
        settings, constraint = self.settings, self._constraint
        allowed = None if constraint is None else constraint.allowed(self.token_ids)
        is_complete = allowed is not None and allowed.sum() == allowed[list(settings.eos_token_ids)].sum()
        is_short = len(self.token_ids) < settings.min_new_tokens and not is_complete
        forbidden = (*(settings.eos_token_ids if is_short else ()), *self._forbidden(self.token_ids))
        try:
            token_id = self._sampler.choose(logits, self._prompt, self.token_ids, forbidden, allowed)
        except NoTokenLeftError:
            if constraint is None:
                raise
            return constraint.take(None, self._capacity)
        return token_id if constraint is None else constraint.take(token_id, self._capacity)

    @property
    def _capacity(self) -> int:
        """Number of tokens that may still come."""
        longest = min(self.settings.max_new_tokens, self.context_length - self.prompt_tokens)
        return longest - len(self.token_ids)

    @property
    def _limit(self) -> str:
        """The finish reason of a text that reaches its maximum length."""
        return "length" if self.settings.max_new_tokens <= self.context_length - self.prompt_tokens else "context"

    def logprobs_of(self, token_id: int | None) -> TokenLogprobs | None:
        """Return the log-probabilities of the token that `advance` returned last, if there are any."""
        return self.logprobs[-1] if self.logprobs and token_id is not None else None

    def _finish_reason(self, token_id: int) -> str | None:
        if self._is_stopped(token_id):
            return "stop"
        if self._capacity > 0:
            return None
        is_complete = self._constraint is not None and self._constraint.is_complete and not self._constraint.is_cut
        return "eos" if is_complete else self._limit


def generate_tokens(
    prompts: Prompts,
    cache: KVCache,
    config: TextConfig,
    settings: GenerationSettings,
    is_stopped: Callable[[int, int], bool] = lambda sequence, token_id: False,
    answer_cache: KVCache | None = None,
    constraint: Callable[[], Constraint | None] = lambda: None,
) -> Iterator[NewToken]:
    """Yield the tokens of all sequences as they are chosen, sequence by sequence within a step.

    A sequence gets the same tokens as in a batch of its own. With num_return_sequences, those of one prompt are
    adjacent, and each prompt is processed once.

    Args:
        prompts: the batch.
        cache: at least as many rows as there are prompts.
        config: of the language model.
        settings: the same for all sequences.
        is_stopped: called with (sequence, token id) for each new token; True ends the sequence with reason "stop".
        answer_cache: stores the sequences if num_return_sequences is more than 1; of the same capacity as `cache`, with
            at least len(prompts) * num_return_sequences rows.
        constraint: makes the constraint of each sequence.

    Raises:
        FloatingPointError: the logits are not finite.
        RuntimeError: another call used `cache` before this one was complete.
    """
    logits = prefill(prompts, cache, config)  # [B, V]
    count = settings.num_return_sequences
    if answer_cache is not None:
        cache = copy_prompts(cache, answer_cache, len(prompts), count)
        logits = np.repeat(logits, count, 0)  # [B * count, V]
    turn, rows = cache.turn, cache.batch_size
    sequences = [
        RunningSequence(
            prompts.ids[number // count, : prompts.lengths[number // count]],
            settings.for_sequence(number % count),
            config.context_length,
            partial(is_stopped, number),
            constraint=constraint(),
        )
        for number in range(len(prompts) * count)
    ]
    ids, positions = np.zeros(rows, np.int64), np.full(rows, -1)
    active = list(range(len(sequences)))
    while active:
        for number in list(active):
            sequence = sequences[number]
            token_id, reason = sequence.advance(logits[number])
            if reason:
                active.remove(number)
                positions[number] = -1
            else:
                ids[number], positions[number] = token_id, sequence.position
            yield NewToken(number, token_id, reason, sequence.logprobs_of(token_id))
        if active:
            cache.check(turn)  # between two tokens the caller may have used the cache for something else
            logits = cache.decoder.decode(ids, positions).asnumpy()
            require_finite(logits[active], cache)


def copy_prompts(source: KVCache, target: KVCache, prompts: int, count: int) -> KVCache:
    """Copy each of the first `prompts` rows of `source` to `count` adjacent rows of `target`, and return `target`."""
    target.begin()
    origins = np.zeros(target.batch_size, np.int64)
    origins[: prompts * count] = np.repeat(np.arange(prompts), count)
    target.decoder.copy_sequences(source.decoder, origins)
    return target
