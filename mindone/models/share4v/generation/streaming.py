"""Streaming: from token ids to pieces of text, with stop strings removed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from ..processing.tokenizer import Tokenizer
from .sampling import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Generator

    from .decoding import NewToken


@dataclass(frozen=True)
class GenerationPiece:
    """A piece of one answer; the pieces of an answer, joined, are its complete text.

    Attributes:
        text: the characters that are now certain; may be empty.
        index: index of the prompt in the batch; with num_return_sequences N, the answers to prompt i are those from
            i * N on.
        token_id: the id generated in this step; None if the answer ended with its end-of-text token.
        finish_reason: None until the last piece; then "eos", "stop", "length" or "context".
        prompt_tokens: tokens of the prompt, image patches included.
        generated_tokens: tokens of the answer so far.
        seconds: since generation began, prefill included.
        logprobs: of token_id, if the settings ask for them.
    """

    text: str
    index: int
    token_id: int | None
    finish_reason: str | None
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    logprobs: TokenLogprobs | None = None

    def __str__(self) -> str:
        return self.text


class AnswerText:
    """The text of one answer while its tokens are generated.

    Characters that may turn out to be part of a stop string are held back until that is decided. White space at both
    ends of the answer is removed, as the processor does when it decodes complete answers.

    Args:
        tokenizer: of the model.
        stops: strings that end the answer; neither they nor what follows is part of the text.

    Attributes:
        is_stopped: whether the text contained a stop string.
        stopped_by: the stop string, the first in the text; None before.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = tokenizer.decoder()
        self._vocabulary_size = len(tokenizer)
        self._stops = tuple(stops)
        self._pending = ""
        self._has_text = False
        self.is_stopped = False
        self.stopped_by: str | None = None

    def push(self, token_id: int) -> bool:
        """Add one id; return whether the text now contains a stop string."""
        if token_id < self._vocabulary_size:  # a padded vocabulary has ids that decode to nothing
            self._pending += self._decoder.push(token_id)
        ends = [(position, stop) for stop in self._stops if (position := self._pending.find(stop)) >= 0]
        if ends:
            position, self.stopped_by = min(ends)
            self._pending = self._pending[:position]
            self.is_stopped = True
        return self.is_stopped

    def take(self) -> str:
        """Return the characters that are certain and were not returned before; trailing white space waits."""
        held_back = max((self._overlap(stop) for stop in self._stops), default=0)
        taken = self._pending[: len(self._pending) - held_back].rstrip()
        self._pending = self._pending[len(taken) :]
        return self._without_leading_space(taken)

    def finish(self) -> str:
        """Return the remaining characters once no more ids come."""
        if not self.is_stopped:
            self._pending += self._decoder.finish()
        taken, self._pending = self._pending.rstrip(), ""
        return self._without_leading_space(taken)

    def _without_leading_space(self, taken: str) -> str:
        if not self._has_text:
            taken = taken.lstrip()
            self._has_text = bool(taken)
        return taken

    def _overlap(self, stop: str) -> int:
        """Return how many characters at the end of the pending text are the beginning of `stop`."""
        longest = min(len(stop) - 1, len(self._pending))
        return next((size for size in range(longest, 0, -1) if self._pending.endswith(stop[:size])), 0)


class Streamer(Protocol):
    """What `generate` needs of a streamer; transformers' TextStreamer and TextIteratorStreamer have it."""

    def put(self, value: Any) -> None:
        """Receive ids [T], first those of the prompt without image placeholders."""

    def end(self) -> None:
        """Called once, after the last id or an error."""


class HasToken(Protocol):
    """A new token, with or without its text."""

    @property
    def token_id(self) -> int | None: ...


New = TypeVar("New", bound=HasToken)


def feed_streamer(streamer: Streamer, prompt: np.ndarray, tokens: Iterator[New], count: int) -> Iterator[New]:
    """Yield `tokens`, and pass their ids to a streamer.

    Args:
        streamer: is ended when the iterator ends, also by an error, so that a thread that reads it does not wait.
        prompt: int [1, T], ids of the prompt, negative at image positions.
        tokens: of one sequence.
        count: number of sequences.

    Raises:
        ValueError: there are several sequences.
    """
    try:
        if count != 1:
            raise ValueError(f"a streamer takes one sequence, got {count}: leave streamer out, or use stream")
        streamer.put(prompt[0][prompt[0] >= 0])
        for new in tokens:
            if new.token_id is not None:
                streamer.put(np.array([new.token_id]))
            yield new
    finally:
        streamer.end()


def stream_text(
    tokens: Generator[NewToken, None, None], answers: Sequence[AnswerText], prompt_lengths: np.ndarray
) -> Iterator[GenerationPiece]:
    """Yield a piece of text for every new token.

    Args:
        tokens: of all sequences; closed when this iterator ends.
        answers: the text of each sequence; whoever generates `tokens` pushes the ids.
        prompt_lengths: int, the prompt's tokens for each sequence.
    """
    counts = np.zeros(len(answers), np.int64)
    start = time.perf_counter()
    with closing(tokens):
        for new in tokens:
            answer = answers[new.sequence]
            counts[new.sequence] += new.token_id is not None
            yield GenerationPiece(
                text=answer.finish() if new.finish_reason else answer.take(),
                index=new.sequence,
                token_id=new.token_id,
                finish_reason=new.finish_reason,
                prompt_tokens=int(prompt_lengths[new.sequence]),
                generated_tokens=int(counts[new.sequence]),
                seconds=time.perf_counter() - start,
                logprobs=new.logprobs,
            )
