"""`generate` and `stream`: validate the arguments, provide a cache, and run the generation loops."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from mindspore import Tensor

from ..configuration import Share4VConfig
from ..hugging_face import GENERATE, split_arguments
from .arguments import (
    ALIASES,
    SETTING_NAMES,
    GenerateArguments,
    GenerationConfig,
    StreamArguments,
    explicit_settings,
)
from .beam_search import beam_search
from .constraints import Constraint, GrammarCompiler
from .continuous_batch import ContinuousBatch
from .decoding import GenerationSettings, NewToken, generate_tokens
from .kv_cache import CachePool, KVCache
from .prefill import Prompts
from .sampling import TokenLogprobs
from .streaming import AnswerText, GenerationPiece, Streamer, feed_streamer, stream_text

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..processing.tokenizer import Tokenizer

Array: TypeAlias = np.ndarray | Tensor | Sequence[Any]


class GeneratedIds(list[list[int]]):
    """The new ids of each sequence: a list of lists, with what else is known about the sequences.

    With num_return_sequences N, the answers to prompt i are those from i * N on.

    Attributes:
        finish_reasons: for each sequence "eos", "stop" (a stop string), "length" (max_new_tokens) or "context" (the
            model's context is full).
        logprobs: for each sequence the log-probabilities of its ids; empty unless the argument `logprobs` was given.

    Example:
        >>> from mindone.models.share4v import Share4V, Share4VProcessor
        >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
        >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
        >>> ids = model.generate(**processor(images="photo.jpg"), max_new_tokens=3, logprobs=1)
        >>> ids.finish_reasons, len(ids.logprobs[0]), ids.logprobs[0][0].token_id == ids[0][0]
        (['length'], 3, True)
    """

    def __init__(self, count: int) -> None:
        super().__init__([] for _ in range(count))
        self.finish_reasons = [""] * count
        self.logprobs: list[list[TokenLogprobs]] = [[] for _ in range(count)]

    def add(self, new: NewToken) -> None:
        """Append a generated token."""
        if new.token_id is not None:
            self[new.sequence].append(new.token_id)
        if new.logprobs is not None:
            self.logprobs[new.sequence].append(new.logprobs)
        if new.finish_reason is not None:
            self.finish_reasons[new.sequence] = new.finish_reason


class GenerationMixin:
    """Generation for a model that has `prepare_inputs`, `encode_images` and `_make_cache`."""

    config: Share4VConfig
    language_model: Any
    generation_config: GenerationConfig
    _pool: CachePool
    _grammars: GrammarCompiler | None

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
            self.language_model,
            self.config.text_config,
            self.tokenizer,
            batch_size,
            self.grammars,
            exclusive=self.exclusive,
        )

    @explicit_settings(GenerateArguments)
    def generate(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        attention_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        past_key_values: KVCache | None = None,
        streamer: Streamer | None = None,
        **settings: Unpack[GenerateArguments],
    ) -> GeneratedIds:
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
            streamer: receives the ids while they are generated, such as transformers' TextStreamer(processor.tokenizer,
                skip_prompt=True) or its TextIteratorStreamer; for one sequence.
            settings: max_new_tokens, min_new_tokens, num_beams, length_penalty, num_return_sequences, logprobs, stop,
                schema and regex as described at `GenerationSettings`; do_sample, temperature, top_k, top_p, min_p,
                repetition_penalty, presence_penalty, frequency_penalty, no_repeat_ngram_size, logit_bias and seed as at
                `Sampling`.
                One that is missing or None has the value in `generation_config`. Other arguments of Hugging Face's
                `generate` are accepted or refused as `hugging_face.ARGUMENTS` says.

        Raises:
            ValueError: inputs or settings are invalid or contradict each other, or a prompt fills the model's context.
            FloatingPointError: the logits are not finite.
            FileChangedError: a file that the weights are mapped from was changed after the model was loaded.
            ForkError: this process was forked from the one that loaded the model.
        """
        checked = self._settings(settings)
        prompts = self.prepare_inputs(input_ids, pixel_values, attention_mask, inputs_embeds)
        count = len(prompts) * checked.num_return_sequences
        # Only stop strings need the text, and with it a tokenizer.
        answers = [AnswerText(self.tokenizer, checked.stop) for _ in range(count)] if checked.stop else []
        generated = GeneratedIds(count)
        tokens: Iterator[NewToken] = self._take_turns(self._generate(prompts, checked, past_key_values, answers))
        if streamer is not None:
            tokens = feed_streamer(streamer, prompts.ids, tokens, count)
        for new in tokens:
            generated.add(new)
        return generated

    @explicit_settings(StreamArguments)
    def stream(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        attention_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        past_key_values: KVCache | None = None,
        **settings: Unpack[StreamArguments],
    ) -> Iterator[GenerationPiece]:
        """Yield the text of the answers while it is generated.

        Arguments and errors are those of `generate`, which returns the same tokens, except beam search; arguments are
        checked at the call, before the first piece is asked for.

        Example:
            >>> from mindone.models.share4v import Share4V, Share4VProcessor
            >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
            >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
            >>> for piece in model.stream(**processor(images=["photo.jpg"])):
            ...     print(piece.text, end="", flush=True)
            In the top left there are four small blue stars. ...
        """
        checked = self._settings(settings)
        if checked.num_beams > 1:
            raise ValueError("beam search cannot be streamed: set num_beams=1")
        prompts = self.prepare_inputs(input_ids, pixel_values, attention_mask, inputs_embeds)
        count = checked.num_return_sequences
        answers = [AnswerText(self.tokenizer, checked.stop) for _ in range(len(prompts) * count)]
        tokens = self._take_turns(self._generate(prompts, checked, past_key_values, answers))
        return stream_text(tokens, answers, np.repeat(prompts.lengths, count))

    @property
    def grammars(self) -> GrammarCompiler:
        """Compiles the schemas and regular expressions of settings; the last few are cached.

        Example:
            >>> from mindone.models.share4v import Share4V
            >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
            >>> model.grammars.constraint(None, "yes|no").allowed([]).sum() < 20
            True
        """
        if self._grammars is None:
            config = self.config.text_config
            self._grammars = GrammarCompiler(self.tokenizer, config.vocab_size, config.eos_token_ids)
        return self._grammars

    def _settings(self, arguments: Mapping[str, Any]) -> GenerationSettings:
        config = self.config.text_config
        given = split_arguments(GENERATE, arguments, SETTING_NAMES, ALIASES)
        chosen = {**self.generation_config.to_diff_dict(), **given}
        settings = GenerationSettings.from_arguments(chosen, config.eos_token_ids)
        settings.check_vocabulary(config.vocab_size)
        return settings

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

            def constraint() -> Constraint | None:
                is_free = settings.schema is None and settings.regex is None
                return None if is_free else self.grammars.constraint(settings.schema, settings.regex)

            if settings.num_return_sequences == 1:
                yield from generate_tokens(prompts, cache, config, settings, is_stopped, constraint=constraint)
                return
            rows = len(prompts) * settings.num_return_sequences
            with self._pool.lease(rows, cache.capacity, cache.capacity) as answer_cache:
                yield from generate_tokens(prompts, cache, config, settings, is_stopped, answer_cache, constraint)

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
