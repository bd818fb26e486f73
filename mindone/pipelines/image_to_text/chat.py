"""ChatSession: a conversation about images, turn by turn, over one KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.generation.decoding import MAX_NEW_TOKENS

from .base import Pipeline

if TYPE_CHECKING:
    from mindone.models.share4v.generation.kv_cache import KVCache
    from mindone.models.share4v.generation.streaming import GenerationPiece
    from mindone.models.share4v.processing.image_loading import ImageSource

_MIN_CACHE_LENGTH = 512  # tokens
_RESERVE_FRACTION = 4  # turns are dropped until an answer can have a quarter of the context, or max_new_tokens


class ChatSession:
    """A conversation; each question is answered in the context of the images and all previous turns.

    The prefix shared with the previous turn is reused from the KV cache, so a turn costs only its new tokens.

    Args:
        pipeline: provides the model, the processor and the chat template.
        images: images of the first question.
        settings: arguments of `generate`, as `check_settings` returns them; beam search is not supported.
        drop_oldest: when a question and a part of its answer no longer fit into the model's context, leave the oldest
            turns out. By default that is an error.

    Attributes:
        messages: the conversation so far.
        dropped: number of turns that the last question left out because the context was full.

    Example:
        >>> from mindone.pipelines import pipeline
        >>> from mindone.pipelines.image_to_text import ChatSession
        >>> session = ChatSession(pipeline("image-text-to-text"), ["photo.jpg"], {"max_new_tokens": 8})
        >>> for question in ("What is this?", "What colour is it?"):
        ...     answer = "".join(piece.text for piece in session.ask(question))
        >>> [message["role"] for message in session.messages]
        ['user', 'assistant', 'user', 'assistant']
    """

    def __init__(
        self,
        pipeline: Pipeline,
        images: Sequence[ImageSource] = (),
        settings: Mapping[str, Any] | None = None,
        drop_oldest: bool = False,
    ) -> None:
        self._pipeline, self._images, self._settings = pipeline, list(images), dict(settings or {})
        self._drop_oldest = drop_oldest
        self._cache: KVCache | None = None
        self.messages: list[dict[str, Any]] = []
        self.dropped = 0

    def reset(self, images: Sequence[ImageSource] | None = None) -> None:
        """Start a new conversation, about the same images or about others."""
        self.messages = []
        if images is not None:
            self._images = list(images)

    def undo(self) -> str | None:
        """Remove the last turn from the conversation, and return its question; None if there is no turn."""
        if not self.messages:
            return None
        question: str = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        return question

    def ask(self, question: str, settings: Mapping[str, Any] | None = None) -> Iterator[GenerationPiece]:
        """Yield the answer while it is generated; once it is complete, both are added to the conversation.

        Args:
            question: the question.
            settings: arguments of `generate` for this answer only; they replace those of the session.

        Raises:
            ImageLoadError: an image cannot be loaded.
            ValueError: the question is empty, or the conversation fills the model's context.
        """
        chat = self._fitting([*self.messages, {"role": "user", "content": question}])
        text = ""
        settings = {**self._settings, **(settings or {}), "past_key_values": self._cache_for(chat)}
        for piece in self._pipeline.stream(chat, self._images, settings):
            text += piece.text
            yield piece
        self.messages = [*chat, {"role": "assistant", "content": text.strip()}]

    def _fitting(self, chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a conversation without as many of its oldest turns as must be dropped for it to fit."""
        self.dropped = 0
        context_length = self._pipeline.model.config.text_config.context_length
        reserve = min(self._max_new_tokens, context_length // _RESERVE_FRACTION)
        while self._drop_oldest and len(chat) > 1 and self._prompt_length(chat) + reserve > context_length:
            chat = chat[2:]
            self.dropped += 1
        return chat

    @property
    def _max_new_tokens(self) -> int:
        settings = {**self._pipeline.model.generation_config.to_diff_dict(), **self._settings}
        return int(settings.get("max_new_tokens", MAX_NEW_TOKENS))

    def _prompt_length(self, chat: Sequence[Mapping[str, Any]]) -> int:
        """Return the length of the prompt in tokens, including the patches of the images."""
        model, processor = self._pipeline.model, self._pipeline.processor
        prompt = processor.prompt(chat, len(self._images), self._pipeline.conversation)
        return len(processor.encode_prompt(prompt)) + len(self._images) * model.config.num_image_tokens

    def _cache_for(self, chat: Sequence[Mapping[str, Any]]) -> KVCache:
        """Return the cache; if it is too small for the prompt and its answer, replace it by a larger one first."""
        model = self._pipeline.model
        needed = self._prompt_length(chat) + self._max_new_tokens
        context_length = model.config.text_config.context_length
        if self._cache is None or self._cache.capacity < min(needed, context_length):
            capacity = _MIN_CACHE_LENGTH
            while capacity < needed:
                capacity *= 2
            self._cache = model.new_cache(max_length=min(capacity, context_length))
        return self._cache
