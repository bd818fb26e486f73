"""Generation of token ids: one loop for a batch of texts, each of which gets what it would get alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .cache import KVCache
from .configuration import TextConfig
from .prefill import Prompts, finite, prefill
from .sampling import Sampler, Sampling

MAX_NEW_TOKENS = 256  # where a caller names none: long captions are what people come for


@dataclass(frozen=True)
class GenerationSettings:
    """How far to generate and how to choose.

    Attributes:
        max_new_tokens: most tokens of one answer.
        min_new_tokens: the end-of-text token is not chosen before so many.
        sampling: how a token is chosen.
        num_beams: more than 1 searches with so many beams.
        length_penalty: beam scores are divided by length to this power.
        eos_token_ids: ids that end an answer.

    Raises:
        ValueError: a value is outside its range, or beams and sampling are asked for together.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    min_new_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    num_beams: int = 1
    length_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("min_new_tokens", 0), ("num_beams", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}")
        if self.num_beams > 1 and not self.sampling.is_greedy:
            raise ValueError("num_beams and do_sample do not go together here: set num_beams=1 or do_sample=False")


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return what a caller gave for `stop` as a tuple.

    Raises:
        ValueError: one of the strings is empty, or is none.
    """
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in stops):
        raise ValueError(f"a stop string must be a text of at least one character, got {stop!r}")
    return stops


@dataclass(frozen=True)
class NewToken:
    """One step of one text.

    Attributes:
        text: number of the text in the batch.
        token_id: the new id; None where the text ended by its end-of-text token.
        finish_reason: None while the text goes on; else "eos", "stop" (a stop string), "length" (max_new_tokens) or
            "context" (the model's context is full).
    """

    text: int
    token_id: int | None
    finish_reason: str | None


def generate_tokens(
    prompts: Prompts,
    cache: KVCache,
    config: TextConfig,
    settings: GenerationSettings,
    stops: Callable[[int, int], bool] = lambda text, token_id: False,
) -> Iterator[NewToken]:
    """Yield the tokens of each text as they are chosen, text by text within a step.

    Args:
        stops: told each new token (text, id); True ends the text with reason "stop".
    """
    logits = prefill(prompts, cache, config)
    turn = cache.turn
    batch, rows = len(prompts), cache.batch_size
    samplers = [Sampler(settings.sampling) for _ in range(batch)]
    seen = [prompts.ids[text, : prompts.lengths[text]] for text in range(batch)]
    counts = np.zeros(batch, np.int64)
    ids, positions = np.zeros(rows, np.int64), np.full(rows, -1)
    active = list(range(batch))
    while active:
        for text in list(active):
            banned = settings.eos_token_ids if counts[text] < settings.min_new_tokens else ()
            token_id = samplers[text].choose(logits[text], seen[text], banned)
            if token_id in settings.eos_token_ids:
                new = NewToken(text, None, "eos")
            else:
                counts[text] += 1
                length = int(prompts.lengths[text] + counts[text])
                new = NewToken(
                    text, token_id, _reason(stops(text, token_id), int(counts[text]), length, config, settings)
                )
                seen[text] = np.append(seen[text], token_id)
                ids[text], positions[text] = token_id, length - 1
            if new.finish_reason:
                active.remove(text)
                positions[text] = -1
            yield new
        if active:
            cache.check(turn)  # a caller may have begun something else with it between two tokens
            logits = cache.decoder.decode(ids, positions).asnumpy()
            finite(logits[active], cache)


def _reason(stopped: bool, count: int, length: int, config: TextConfig, settings: GenerationSettings) -> str | None:
    if stopped:
        return "stop"
    if count >= settings.max_new_tokens:
        return "length"
    return "context" if length >= config.context_length else None
