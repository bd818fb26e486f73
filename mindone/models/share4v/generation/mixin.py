"""`generate` and `stream`: validate the arguments, provide a cache, and run the generation loops."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from mindspore import Tensor

from ..configuration import Share4VConfig
from .beam_search import beam_search
from .continuous_batch import ContinuousBatch
from .decoding import MAX_NEW_TOKENS, GenerationSettings, NewToken, generate_tokens
from .kv_cache import CachePool, KVCache
from .prefill import Prompts
from .streaming import AnswerText, GenerationPiece, stream_text

if TYPE_CHECKING:
    from ..processing.tokenizer import Tokenizer

Array: TypeAlias = np.ndarray | Tensor | Sequence[Any]


class GenerationMixin:
    """Generation for a model that has `prepare_inputs`, `encode_images` and `_make_cache`."""

    config: Share4VConfig
    language_model: Any
    _pool: CachePool

    if TYPE_CHECKING:

        @property
        def tokenizer(self) -> Tokenizer: ...

        def prepare_inputs(
            self,
            input_ids: Array | None = None,
            pixel_values: Array | None = None,
            attention_mask: Array | None = None,
            inputs_embeds: Array | None = None,
            image_features: Tensor | None = None,
        ) -> Prompts: ...

        def encode_images(self, pixel_values: Array) -> Tensor: ...

        def exclusive(self) -> AbstractContextManager[None]: ...

        def _make_cache(self, batch_size: int, capacity: int) -> KVCache: ...

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """Return a key/value cache to pass to several calls of `generate` as `past_key_values`.

        Args:
            batch_size: maximum number of sequences in one call.
            max_length: capacity in tokens, prompt and answer together; by default the model's context length.
        """
        with self.exclusive():
            return self._make_cache(batch_size, max_length or self.config.text_config.context_length)

    def continuous_batch(self, batch_size: int) -> ContinuousBatch[Any]:
        """Return an empty batch that sequences (`prepare_inputs`) can join and leave at any step.

        `engine.Engine` adds a queue, image encoding and threads.

        Args:
            batch_size: maximum number of sequences that are decoded together.
        """
        return ContinuousBatch(
            self.language_model, self.config.text_config, self.tokenizer, batch_size, exclusive=self.exclusive
        )

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
        """Return the new ids of each sequence, without the prompt and the end-of-text token.

        The arguments have the same meaning as in Hugging Face's `generate`; temperature 0 is greedy. A sequence of a
        batch gets the same ids as in a batch of its own. Several threads may call it at a time: they take turns, token
        by token (beam search: answer by answer), and get the same ids as in a single thread.

        Args:
            input_ids: int [B, L], with config.image_token_id (or IMAGE_TOKEN_INDEX) where an image goes.
            pixel_values: float32 [N, 3, S, S], the images in order over the batch.
            attention_mask: int [B, L], 0 at padding, which may be on either side.
            inputs_embeds: float32 [B, T, H] in place of input_ids and pixel_values.
            past_key_values: a cache of `new_cache`; the prefix that it shares with this prompt is not recomputed.
            max_new_tokens, min_new_tokens: length of the answer in tokens.
            do_sample, temperature, top_k, top_p, repetition_penalty, seed: as in `Sampling`.
            num_beams, length_penalty: beam search, if num_beams is more than 1.
            stop: a sequence ends once its text contains one of these strings.

        Raises:
            ValueError: inputs or settings are invalid or contradict each other, or a prompt fills the model's context.
            FloatingPointError: the logits are not finite.
            FileChangedError: a file that the weights are mapped from was changed after the model was loaded.
            ForkError: this process was forked from the one that loaded the model.
        """
        settings = self._settings(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            num_beams=num_beams,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
        )
        prompts = self.prepare_inputs(input_ids, pixel_values, attention_mask, inputs_embeds)
        # Only stop strings need the text, and with it a tokenizer.
        answers = [AnswerText(self.tokenizer, settings.stop) for _ in range(len(prompts))] if settings.stop else []
        ids: list[list[int]] = [[] for _ in range(len(prompts))]
        for new in self._take_turns(self._generate(prompts, settings, past_key_values, answers)):
            if new.token_id is not None:
                ids[new.sequence].append(new.token_id)
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
        """Yield the text of the answers while it is generated.

        Arguments and errors are those of `generate`, which returns the same tokens; arguments are checked at the call,
        before the first piece is asked for.

        Example:
            >>> from mindone.models.share4v import Share4V, Share4VProcessor
            >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
            >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
            >>> for piece in model.stream(**processor(images=["photo.jpg"])):
            ...     print(piece.text, end="", flush=True)
            In the top left there are four small blue stars. ...
        """
        settings = self._settings(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
        )
        prompts = self.prepare_inputs(input_ids, pixel_values, attention_mask, inputs_embeds)
        answers = [AnswerText(self.tokenizer, settings.stop) for _ in range(len(prompts))]
        tokens = self._take_turns(self._generate(prompts, settings, past_key_values, answers))
        return stream_text(tokens, answers, prompts.lengths)

    def _settings(self, **arguments: Any) -> GenerationSettings:
        return GenerationSettings.from_arguments(arguments, self.config.text_config.eos_token_ids)

    def _take_turns(self, tokens: Generator[NewToken, None, None]) -> Generator[NewToken, None, None]:
        """Yield `tokens`; the model belongs to this thread while a token is computed, and is free in between."""
        with closing(tokens):
            while True:
                with self.exclusive():
                    new = next(tokens, None)
                if new is None:
                    return
                yield new

    def _generate(
        self,
        prompts: Prompts,
        settings: GenerationSettings,
        past_key_values: KVCache | None,
        answers: Sequence[AnswerText],
    ) -> Generator[NewToken, None, None]:
        """Yield the new tokens, by beam search or token by token; ids are pushed to `answers`, if there are any."""
        config = self.config.text_config
        with self._cache_for(prompts, settings, past_key_values) as cache:
            if settings.num_beams > 1:
                with self._pool.lease(len(prompts) * settings.num_beams, cache.capacity, cache.capacity) as beam_cache:
                    yield from beam_search(prompts, cache, beam_cache, config, settings)
                return

            def is_stopped(sequence: int, token_id: int) -> bool:
                return bool(answers) and answers[sequence].push(token_id)

            yield from generate_tokens(prompts, cache, config, settings, is_stopped)

    @contextmanager
    def _cache_for(self, prompts: Prompts, settings: GenerationSettings, given: KVCache | None) -> Iterator[KVCache]:
        """Provide the caller's cache, after checking it, or one from the pool."""
        context = self.config.text_config.context_length
        length = min(int(prompts.lengths.max()) + settings.max_new_tokens, context)
        if given is None:
            capacity = context if self.language_model.allocates_cache_lazily else length
            with self._pool.lease(len(prompts), capacity, context) as cache:
                yield cache
            return
        if not isinstance(given, KVCache):
            raise TypeError(f"past_key_values must come from model.new_cache(), got {type(given).__name__}")
        if given.language_model is not self.language_model:
            raise ValueError("past_key_values belong to another model: make them with this model's new_cache()")
        if given.batch_size < len(prompts) or given.capacity < length:
            raise ValueError(
                f"past_key_values has a capacity of {given.batch_size} sequences of {given.capacity} tokens, but "
                f"{len(prompts)} of {length} are needed: make it with model.new_cache({len(prompts)}, {length})"
            )
        yield given
