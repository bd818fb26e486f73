"""Generation of token ids: one loop for a batch of texts, each of which gets what it would get alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..configuration import TextConfig
from .kv_cache import KVCache
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


class RunningText:
    """One text that is being generated: what it says so far, and which token comes next.

    Args:
        prompt: int [T], ids of the prompt, -1 at images.
        settings: how far to generate and how to choose.
        context_length: of the model.
        is_stopped: told each new id; True ends the text with reason "stop".
        forbidden: told the new ids so far, returns those that must not come next.
    """

    def __init__(
        self,
        prompt: np.ndarray,
        settings: GenerationSettings,
        context_length: int,
        is_stopped: Callable[[int], bool] = lambda token_id: False,
        forbidden: Callable[[Sequence[int]], Collection[int]] = lambda token_ids: (),
    ) -> None:
        self.settings, self.context_length = settings, context_length
        self.prompt_tokens = len(prompt)
        self.token_ids: list[int] = []
        self._prompt, self._sampler = prompt, Sampler(settings.sampling)
        self._is_stopped, self._forbidden = is_stopped, forbidden

    @property
    def position(self) -> int:
        """Where the last token stands."""
        return self.prompt_tokens + len(self.token_ids) - 1

    def advance(self, logits: np.ndarray) -> tuple[int | None, str | None]:
        """Choose the next token from logits [V]; return its id and the reason why the text ends, as in `NewToken`."""
        settings = self.settings
        banned = settings.eos_token_ids if len(self.token_ids) < settings.min_new_tokens else ()
        seen = np.concatenate((self._prompt, np.array(self.token_ids, np.int64)))
        token_id = self._sampler.choose(logits, seen, (*banned, *self._forbidden(self.token_ids)))
        if token_id in settings.eos_token_ids:
            return None, "eos"
        self.token_ids.append(token_id)
        return token_id, self._reason(token_id)

    def _reason(self, token_id: int) -> str | None:
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
    stops: Callable[[int, int], bool] = lambda text, token_id: False,
) -> Iterator[NewToken]:
    """Yield the tokens of each text as they are chosen, text by text within a step.

    Args:
        stops: told each new token (text, id); True ends the text with reason "stop".
    """
    logits = prefill(prompts, cache, config)
    turn, rows = cache.turn, cache.batch_size
    texts = [
        RunningText(prompts.ids[text, : prompts.lengths[text]], settings, config.context_length, partial(stops, text))
        for text in range(len(prompts))
    ]
    ids, positions = np.zeros(rows, np.int64), np.full(rows, -1)
    active = list(range(len(prompts)))
    while active:
        for text in list(active):
            token_id, reason = texts[text].advance(logits[text])
            if reason:
                active.remove(text)
                positions[text] = -1
            else:
                ids[text], positions[text] = token_id, texts[text].position
            yield NewToken(text, token_id, reason)
        if active:
            cache.check(turn)  # a caller may have begun something else with it between two tokens
            logits = cache.decoder.decode(ids, positions).asnumpy()
            finite(logits[active], cache)
