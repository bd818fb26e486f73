"""A conversation about pictures, turn by turn, over one key/value cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.generation.decoding import MAX_NEW_TOKENS

from .base import Pipeline

if TYPE_CHECKING:
    from mindone.models.share4v.generation.kv_cache import KVCache
    from mindone.models.share4v.generation.streaming import GenerationPiece
    from mindone.models.share4v.processing.image_loading import ImageSource

_SMALLEST_CACHE = 512  # tokens


class ChatSession:
    """Questions that follow one another; each sees the pictures and all turns before it.

    What the prompt has in common with the last turn's is read from the cache: a turn costs its own tokens alone.

    Args:
        pipeline: model, processor and template.
        images: the pictures that the first question shows.
        settings: arguments of `generate`, as `check_settings` returns them; beams are refused.

    Example:
        >>> from mindone.pipelines import pipeline
        >>> from mindone.pipelines.image_to_text.chat import ChatSession
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
        """Forget all turns; the pictures stay."""
        self.messages = []

    def ask(self, question: str) -> Iterator[GenerationPiece]:
        """Yield the answer's pieces; question and answer become part of the conversation once the answer is whole.

        Raises:
            ImageLoadError: a picture cannot be loaded.
            ValueError: the question is empty, or the conversation fills the model's context.
        """
        chat = [*self.messages, {"role": "user", "content": question}]
        text = ""
        for piece in self._pipeline.stream(chat, self._images, {**self._settings, "past_key_values": self._room(chat)}):
            text += piece.text
            yield piece
        self.messages = [*chat, {"role": "assistant", "content": text.strip()}]

    def _room(self, chat: Sequence[Mapping[str, Any]]) -> KVCache:
        """Return the cache, or a larger one once the conversation outgrows it."""
        model, processor = self._pipeline.model, self._pipeline.processor
        prompt = processor.prompt(chat, len(self._images), self._pipeline.conversation)
        patches = len(self._images) * model.config.num_image_tokens
        context = model.config.text_config.context_length
        needed = (
            len(processor.encode_prompt(prompt)) + patches + int(self._settings.get("max_new_tokens", MAX_NEW_TOKENS))
        )
        if self._cache is None or self._cache.capacity < min(needed, context):
            capacity = _SMALLEST_CACHE
            while capacity < needed:
                capacity *= 2
            self._cache = model.new_cache(max_length=min(capacity, context))
        return self._cache
