"""Text and statistics on top of token ids: pieces as they come, stop strings never shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..configuration import TextConfig
from ..processing.tokenizer import IncrementalDecoder, Tokenizer
from .decoding import GenerationSettings, generate_tokens
from .kv_cache import KVCache
from .prefill import Prompts


@dataclass(frozen=True)
class GenerationPiece:
    """A piece of one answer; the pieces of an answer, joined, are its whole text.

    Attributes:
        text: characters that are certain by now; may be empty.
        index: number of the prompt in the batch.
        token_id: the id behind this step; None where the answer ended by its end-of-text token.
        finish_reason: None until the last piece; then "eos", "stop", "length" or "context".
        prompt_tokens: tokens of the prompt, image patches counted.
        generated_tokens: tokens of the answer so far.
        seconds: since generation began, prefill included.
    """

    text: str
    index: int
    token_id: int | None
    finish_reason: str | None
    prompt_tokens: int
    generated_tokens: int
    seconds: float

    def __str__(self) -> str:
        return self.text


class AnswerText:
    """The text of one answer as it grows; holds back what may turn out to begin a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._known = len(tokenizer)
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, token_id: int) -> bool:
        """Take one more id; return whether a stop string is complete."""
        if token_id < self._known:  # a vocabulary that was padded has ids which stand for nothing
            self._held += self._decoder.push(token_id)
        ends = [position for position in (self._held.find(stop) for stop in self._stops) if position >= 0]
        if ends:
            self._held = self._held[: min(ends)]
            self.is_stopped = True
        return self.is_stopped

    def take(self) -> str:
        """Return the characters that are certain and not shown yet; white space waits for what follows it."""
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        shown = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(shown) :]
        return shown

    def finish(self) -> str:
        """Return what is left once no more ids come, without white space at the end, as the processor decodes."""
        if not self.is_stopped:
            self._held += self._decoder.finish()
        shown, self._held = self._held.rstrip(), ""
        return shown

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the held text begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


def stream_text(
    prompts: Prompts,
    cache: KVCache,
    config: TextConfig,
    settings: GenerationSettings,
    tokenizer: Tokenizer,
    stops: Sequence[str] = (),
) -> Iterator[GenerationPiece]:
    """Yield a piece for every new token of every text; white space around an answer is left out."""
    answers = [AnswerText(tokenizer, stops) for _ in range(len(prompts))]
    counts = np.zeros(len(prompts), np.int64)
    is_open = [False] * len(prompts)
    begun = time.perf_counter()
    for new in generate_tokens(prompts, cache, config, settings, lambda text, token: answers[text].push(token)):
        counts[new.text] += new.token_id is not None
        shown = answers[new.text].finish() if new.finish_reason else answers[new.text].take()
        if not is_open[new.text]:
            shown = shown.lstrip()
            is_open[new.text] = bool(shown)
        yield GenerationPiece(
            text=shown,
            index=new.text,
            token_id=new.token_id,
            finish_reason=new.finish_reason,
            prompt_tokens=int(prompts.lengths[new.text]),
            generated_tokens=int(counts[new.text]),
            seconds=time.perf_counter() - begun,
        )
