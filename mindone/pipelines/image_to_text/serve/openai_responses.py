"""Answers of OpenAI's API: complete ones, and the chunks of a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from .errors import ApiError, openai_error
from .generation import FINISH_REASONS, Generation
from .json_text import dumps
from .openai_requests import CompletionRequest
from .tokens import token_bytes, token_text

if TYPE_CHECKING:
    from mindone.models.share4v.generation.continuous_batch import Completion, PrefillProgress
    from mindone.models.share4v.generation.sampling import TokenLogprobs
    from mindone.models.share4v.generation.streaming import GenerationPiece
    from mindone.models.share4v.processing.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Writer:
    """Formats the answers to one request.

    Attributes:
        request: what was asked.
        generation: its answers.
        model: name of the model.
        tokenizer: of the model.
        is_chat: chat completions rather than completions.
        id: of the answer.
        created: seconds since 1970.
        progress_interval: seconds without an event after which a stream gets a comment.
    """

    request: CompletionRequest
    generation: Generation
    model: str
    tokenizer: Tokenizer
    is_chat: bool
    progress_interval: float
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    _last_pieces: dict[int, GenerationPiece] = field(default_factory=dict)
    _offsets: dict[int, int] = field(default_factory=dict)  # choice -> characters of the tokens so far
    _named_prompts: set[int] = field(default_factory=set)  # choices whose prompt_token_ids a stream has sent

    def complete(self) -> dict[str, Any]:
        """Return the body of a complete answer."""
        completions = [self.generation.completions[number] for number in range(len(self.request.prompts))]
        body = self._head("chat.completion" if self.is_chat else "text_completion")
        body["choices"] = [self._choice(number, one) for number, one in enumerate(completions)]
        body["usage"] = self.usage()
        slowest = max(range(len(completions)), key=lambda number: completions[number].ended or 0.0)
        body["timings"] = timings(self.generation, slowest)
        if self.request.return_token_ids and self.is_chat:
            body["prompt_token_ids"] = self._prompt_ids(0)
        return body

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the events of a stream; an error becomes its last event."""
        try:
            if self.is_chat:
                for number in range(len(self.request.prompts)):
                    yield self._chunk(number)
            while not self.generation.is_complete:
                events = await self.generation.events(self.progress_interval)
                if not events:
                    yield b": still working\n\n"
                for event in events:
                    for chunk in self._event(event.choice, event.value):
                        yield chunk
            if self.request.include_usage:
                yield self._data({**self._head(self._chunk_object), "choices": [], "usage": self.usage()})
            yield DONE
        except ApiError as error:
            yield self._data(openai_error(error))

    def usage(self) -> dict[str, Any]:
        """Return the usage of all answers; a prompt counts once for each of its answers' groups."""
        prompts = {id(prompt): prompt for prompt in self.generation.prompts}.values()
        completions = self.generation.completions.values()
        prompt_tokens = sum(prompt.tokens for prompt in prompts)
        new_tokens = sum(len(one.token_ids) for one in completions)
        cached = min(max((one.cached_tokens for one in completions), default=0), prompt_tokens)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": prompt_tokens + new_tokens,
            "prompt_tokens_details": {
                "cached_tokens": cached,
                "image_tokens": sum(prompt.image_tokens for prompt in prompts),
            },
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl-" if self.is_chat else "cmpl-"
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, number: int, completion: Completion[Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": number, "finish_reason": FINISH_REASONS[completion.finish_reason]}
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": completion.text, "refusal": None}
        else:
            choice["text"] = completion.text
        choice["logprobs"] = self._logprobs(number, completion.logprobs) if self.request.logprobs else None
        if self.request.return_token_ids:
            choice["token_ids"] = list(completion.token_ids)
            if not self.is_chat:  # a request for completions may have several prompts
                choice["prompt_token_ids"] = self._prompt_ids(number)
        return choice

    def _event(self, number: int, value: Any) -> list[bytes]:
        """Return the chunks for an event; the result of an answer has been sent with its last piece."""
        from mindone.models.share4v.generation.continuous_batch import PrefillProgress
        from mindone.models.share4v.generation.streaming import GenerationPiece

        if isinstance(value, PrefillProgress):
            return [self._progress(number, value)]
        if not isinstance(value, GenerationPiece):  # the result, which the last piece has waited for
            return [self._chunk(number, self._last_pieces.pop(number))]
        if value.finish_reason:
            self._last_pieces[number] = value
            return []
        return [self._chunk(number, value)] if value.text or value.logprobs or self.request.return_token_ids else []

    def _progress(self, number: int, progress: PrefillProgress) -> bytes:
        """Return the progress of a prompt: a comment, or if the client asks for it, data with llama.cpp's keys."""
        if not self.request.return_progress:
            return f": prompt {progress.processed_tokens}/{progress.prompt_tokens}\n\n".encode()
        shown = {
            "total": progress.prompt_tokens,
            "cache": progress.cached_tokens,
            "processed": progress.processed_tokens,
            "time_ms": round((time.perf_counter() - self.generation.submitted) * 1000),
        }
        return self._data({**self._head(self._chunk_object), "choices": [], "prompt_progress": shown})

    def _chunk(self, number: int, piece: GenerationPiece | None = None) -> bytes:
        """Return the chunk of a piece; None is the start of an answer."""
        body = self._head(self._chunk_object)
        text = piece.text if piece is not None else ""
        choice: dict[str, Any] = {"index": number}
        if not self.is_chat:
            choice["text"] = text
        elif piece is None:
            choice["delta"] = {"role": "assistant", "content": ""}
        else:
            choice["delta"] = {"content": text} if text else {}
        choice["logprobs"] = self._logprobs(number, (piece.logprobs,)) if piece is not None and piece.logprobs else None
        reason = piece.finish_reason if piece is not None else None
        choice["finish_reason"] = FINISH_REASONS[reason] if reason else None
        if self.request.return_token_ids and piece is not None:
            choice["token_ids"] = [] if piece.token_id is None else [piece.token_id]
        if self.request.return_token_ids and number not in self._named_prompts:  # in the first chunk of each answer
            self._named_prompts.add(number)
            (body if self.is_chat else choice)["prompt_token_ids"] = self._prompt_ids(number)
        body["choices"] = [choice]
        if self.request.include_usage:
            body["usage"] = None
        if reason:
            body["timings"] = timings(self.generation, number)
        return self._data(body)

    def _prompt_ids(self, number: int) -> list[int]:
        return list(map(int, self.generation.prompts[number].input_ids[0]))

    def _data(self, body: Mapping[str, Any]) -> bytes:
        return b"data: " + dumps(body) + b"\n\n"

    def _logprobs(self, number: int, tokens: tuple[TokenLogprobs, ...]) -> dict[str, Any]:
        if self.is_chat:
            return {"content": [self._token(one) for one in tokens], "refusal": None}
        texts = [token_text(self.tokenizer, one.token_id) for one in tokens]
        *offsets, self._offsets[number] = accumulate(map(len, texts), initial=self._offsets.get(number, 0))
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [{token_text(self.tokenizer, key): value for key, value in one.top} for one in tokens],
            "text_offset": offsets,
        }

    def _token(self, token: TokenLogprobs) -> dict[str, Any]:
        return {
            **self._named(token.token_id, token.logprob),
            "top_logprobs": [self._named(token_id, logprob) for token_id, logprob in token.top],
        }

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(self.tokenizer, token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


def timings(generation: Generation, number: int) -> dict[str, Any]:
    """Return the times and the speed of an answer that has ended, with llama.cpp's keys where it has them."""
    completion, submitted = generation.completions[number], generation.submitted
    started = completion.started or submitted
    first, ended = completion.first_token or started, completion.ended or started
    new_tokens, seconds = len(completion.token_ids), max(ended - first, 1e-9)
    return {
        "queue_ms": round((started - submitted) * 1000, 3),
        "cache_n": completion.cached_tokens,
        "prompt_n": completion.prompt_tokens - completion.cached_tokens,
        "prompt_ms": round((first - started) * 1000, 3),
        "time_to_first_token_ms": round((first - submitted) * 1000, 3),
        "predicted_n": new_tokens,
        "predicted_ms": round((ended - first) * 1000, 3),
        "predicted_per_second": round(max(new_tokens - 1, 0) / seconds, 3),
    }
