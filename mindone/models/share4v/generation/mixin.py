"""`generate` and `stream`: what a caller asks for, checked and handed to the loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from mindspore import Tensor

from ..configuration import Share4VConfig
from .beam_search import beam_search
from .continuous_batch import ContinuousBatch
from .decoding import MAX_NEW_TOKENS, GenerationSettings, generate_tokens, stop_strings
from .kv_cache import CachePool, KVCache
from .prefill import Prompts
from .sampling import Sampling
from .streaming import AnswerText, GenerationPiece, stream_text

if TYPE_CHECKING:
    from ..processing.tokenizer import Tokenizer

Array: TypeAlias = np.ndarray | Tensor | Sequence[Any]


class GenerationMixin:
    """Generation for a model that can lay prompts out (`_prepare_inputs`) and make caches (`_make_cache`)."""

    config: Share4VConfig
    language_model: Any
    _pool: CachePool

    if TYPE_CHECKING:

        @property
        def tokenizer(self) -> Tokenizer: ...

        def _prepare_inputs(
            self,
            input_ids: Array | None,
            pixel_values: Array | None,
            attention_mask: Array | None,
            inputs_embeds: Array | None,
            image_features: Tensor | None = None,
        ) -> Prompts: ...

        def _make_cache(self, batch_size: int, capacity: int) -> KVCache: ...

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """Return a key/value cache to hand to `generate` as `past_key_values`, call after call.

        Args:
            batch_size: how many texts it serves at once.
            max_length: tokens of prompt and answer together; by default the model's whole context.
        """
        return self._make_cache(batch_size, max_length or self.config.text_config.context_length)

    def continuous_batch(self, batch_size: int) -> ContinuousBatch[Any]:
        """Return an empty batch that up to `batch_size` texts can join and leave at any time; see `prepare_inputs`."""
        return ContinuousBatch(self.language_model, self.config.text_config, self.tokenizer, batch_size)

    def prepare_inputs(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        attention_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        image_features: Tensor | None = None,
    ) -> Prompts:
        """Encode the images and put everything where it goes: what `ContinuousBatch.join` takes.

        `image_features` [N, P, H] (`encode_images`) stand in for pixel_values: several images encode in less time
        together than one by one.

        Raises:
            ValueError: the inputs contradict each other, or a prompt fills the model's context.
        """
        return self._checked(input_ids, pixel_values, attention_mask, inputs_embeds, image_features)

    def generate(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        attention_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        past_key_values: KVCache | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        min_new_tokens: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> list[list[int]]:
        """Return the new ids of each text: no prompt, no end-of-text token.

        Names mean what they mean in Hugging Face's `generate`; temperature 0 is greedy. A text of a batch gets the ids
        it would get alone. With `stop`, a text ends once one of these strings is complete.

        Raises:
            ValueError: inputs or settings contradict each other, or a prompt fills the model's context.
        """
        sampling = Sampling(do_sample, temperature, top_k, top_p, repetition_penalty, seed)
        settings = self._settings(max_new_tokens, min_new_tokens, sampling, num_beams, length_penalty)
        stops = stop_strings(stop)
        prompts = self._checked(input_ids, pixel_values, attention_mask, inputs_embeds)
        with self._cache_for(prompts, settings, past_key_values) as cache:
            if num_beams > 1:
                if stops:
                    raise ValueError("stop strings and num_beams do not go together: set num_beams=1 or leave stop out")
                with self._pool.lease(len(prompts) * num_beams, cache.capacity, cache.capacity) as beams:
                    return beam_search(prompts, cache, beams, self.config.text_config, settings)
            answers = [AnswerText(self.tokenizer, stops) for _ in range(len(prompts))] if stops else []
            ids: list[list[int]] = [[] for _ in range(len(prompts))]
            watch = (lambda text, token_id: answers[text].push(token_id)) if stops else (lambda text, token_id: False)
            for new in generate_tokens(prompts, cache, self.config.text_config, settings, watch):
                if new.token_id is not None:
                    ids[new.text].append(new.token_id)
            return ids

    def stream(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        attention_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        past_key_values: KVCache | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        min_new_tokens: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> Iterator[GenerationPiece]:
        """Yield the answers' text as it is made; arguments as in `generate`, which has the same texts.

        Example:
            >>> from mindone.models.share4v import Share4V, Share4VProcessor
            >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
            >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
            >>> for piece in model.stream(**processor(images=["photo.jpg"])):
            ...     print(piece.text, end="", flush=True)
            In the top left there are four small blue stars. ...
        """
        sampling = Sampling(do_sample, temperature, top_k, top_p, repetition_penalty, seed)
        settings = self._settings(max_new_tokens, min_new_tokens, sampling, 1, 1.0)
        prompts = self._checked(input_ids, pixel_values, attention_mask, inputs_embeds)
        return self._stream(prompts, settings, past_key_values, self.tokenizer, stop_strings(stop))

    def _stream(
        self,
        prompts: Prompts,
        settings: GenerationSettings,
        past_key_values: KVCache | None,
        tokenizer: Tokenizer,
        stops: tuple[str, ...],
    ) -> Iterator[GenerationPiece]:
        with self._cache_for(prompts, settings, past_key_values) as cache:
            yield from stream_text(prompts, cache, self.config.text_config, settings, tokenizer, stops)

    def _settings(
        self, most: int, least: int, sampling: Sampling, num_beams: int, length_penalty: float
    ) -> GenerationSettings:
        ends = self.config.text_config.eos_token_ids
        return GenerationSettings(most, least, sampling, num_beams, length_penalty, ends)

    def _checked(
        self,
        input_ids: Array | None,
        pixel_values: Array | None,
        attention_mask: Array | None,
        inputs_embeds: Array | None,
        image_features: Tensor | None = None,
    ) -> Prompts:
        prompts = self._prepare_inputs(input_ids, pixel_values, attention_mask, inputs_embeds, image_features)
        longest, context = int(prompts.lengths.max()), self.config.text_config.context_length
        if longest >= context:
            raise ValueError(
                f"the prompt has {longest} tokens with its images, the model's context {context}: shorten the text, "
                "send fewer images, or use a model with a longer context"
            )
        return prompts

    @contextmanager
    def _cache_for(self, prompts: Prompts, settings: GenerationSettings, given: KVCache | None) -> Iterator[KVCache]:
        context = self.config.text_config.context_length
        length = min(int(prompts.lengths.max()) + settings.max_new_tokens, context)
        if given is None:
            room = context if self.language_model.takes_memory_as_used else length
            with self._pool.lease(len(prompts), room, context) as cache:
                yield cache
            return
        if not isinstance(given, KVCache):
            raise TypeError(f"past_key_values must come from model.new_cache(), got {type(given).__name__}")
        if given.language_model is not self.language_model:
            raise ValueError("past_key_values belong to another model: make them with this model's new_cache()")
        if given.batch_size < len(prompts) or given.capacity < length:
            raise ValueError(
                f"past_key_values has room for {given.batch_size} texts of {given.capacity} tokens, needed are "
                f"{len(prompts)} of {length}: make it with model.new_cache({len(prompts)}, {length})"
            )
        yield given
