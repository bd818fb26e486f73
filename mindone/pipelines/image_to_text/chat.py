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


class ChatSession:
    """A conversation; each question is answered in the context of the images and all previous turns.

    The prefix shared with the previous turn is reused from the KV cache, so a turn costs only its new tokens.

    Args:
        pipeline: provides the model, the processor and the chat template.
        images: images of the first question.
        settings: arguments of `generate`, as `check_settings` returns them; beam search is not supported.

    Attributes:
        messages: the conversation so far.

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
        self, pipeline: Pipeline, images: Sequence[ImageSource] = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        self._pipeline, self._images, self._settings = pipeline, list(images), dict(settings or {})
        self._cache: KVCache | None = None
        self.messages: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Start a new conversation about the same images."""
        self.messages = []

    def ask(self, question: str) -> Iterator[GenerationPiece]:
        """Yield the answer while it is generated; once it is complete, both are added to the conversation.

        Raises:
            ImageLoadError: an image cannot be loaded.
            ValueError: the question is empty, or the conversation fills the model's context.
        """
        chat = [*self.messages, {"role": "user", "content": question}]
        text = ""
        settings = {**self._settings, "past_key_values": self._cache_for(chat)}
        for piece in self._pipeline.stream(chat, self._images, settings):
            text += piece.text
            yield piece
        self.messages = [*chat, {"role": "assistant", "content": text.strip()}]

    def _cache_for(self, chat: Sequence[Mapping[str, Any]]) -> KVCache:
        """Return the cache; if it is too small for the prompt and its answer, replace it by a larger one first."""
        model, processor = self._pipeline.model, self._pipeline.processor
        prompt = processor.prompt(chat, len(self._images), self._pipeline.conversation)
        num_patches = len(self._images) * model.config.num_image_tokens
        max_new_tokens = int(self._settings.get("max_new_tokens", MAX_NEW_TOKENS))
        needed = len(processor.encode_prompt(prompt)) + num_patches + max_new_tokens
        context_length = model.config.text_config.context_length
        if self._cache is None or self._cache.capacity < min(needed, context_length):
            capacity = _MIN_CACHE_LENGTH
            while capacity < needed:
                capacity *= 2
            self._cache = model.new_cache(max_length=min(capacity, context_length))
        return self._cache
