"""Share4V: a vision tower, a projector and a language model, put together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakSet

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from .backends import check_stored_integers, choose_components, make_vision, open_checkpoint
from .concurrency import MINDSPORE, FairLock, check_process, claim_process
from .configuration import Share4VConfig
from .embedding_merging import check_vocabulary, plan_merge
from .generation.arguments import GenerationConfig
from .generation.kv_cache import CachePool, KVCache, prompt_signature
from .generation.mixin import Array, GenerationMixin
from .generation.prefill import Prompts, check_length
from .hugging_face import MODEL
from .inputs import as_numpy, check_pixels, embedding_table
from .kernels.component import WeightHolder, runs_on_kernels, weight_holders
from .kernels.numa_placement import place_weights
from .load_options import LoadOptions, checked_options, dtype_name, explicit_options
from .nn.host_ops import stack_rows
from .pretrained_model import ModelInterface
from .quantization import LOADED_LAYOUTS, loaded_dtype, precision_of
from .vision.features import ImageFeatures, pixel_digest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .checkpoint import Checkpoint
    from .checkpoint.formats.mapped_file import FileVersion
    from .load_options import LoadArguments
    from .processing.tokenizer import Tokenizer


@dataclass(frozen=True)
class Share4VOutput:
    """Attributes:
    logits: float32 [B, T, V]; T counts an image's patches in place of its placeholder. Padding is on the side where the
        attention_mask has it, and its logits mean nothing.
    attention_mask: int64 [B, T], 0 at padding.
    """

    logits: Tensor
    attention_mask: np.ndarray


class Share4V(GenerationMixin, ModelInterface, nn.Cell):
    """ShareGPT4V (Chen et al. 2023): captions and answers about images. Without a vision tower, a LLaMA for texts.

    Args:
        config: what to build.
        dtype: type of the weight matrices: "float32", "float16", and on an Ascend or with the backend "kernels" also
            "bfloat16", "int8" or "int4".
        language_backend, vision_backend: as in LoadOptions; here the default is "mindspore", whose cells can be
            trained.
        kv_cache_dtype: as in LoadOptions.

    Example:
        >>> from mindone.models.share4v import Share4V, Share4VProcessor
        >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
        >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
        >>> ids = model.generate(**processor(text="Describe this image"), max_new_tokens=4)
        >>> len(ids), len(ids[0]) <= 4
        (1, True)
    """

    def __init__(
        self,
        config: Share4VConfig,
        dtype: str = "float32",
        language_backend: str = "mindspore",
        vision_backend: str = "mindspore",
        kv_cache_dtype: str | None = None,
    ) -> None:
        super().__init__()
        claim_process()
        self._lock = FairLock()
        self.config = config
        self.generation_config = GenerationConfig()
        self._mapped_files: frozenset[FileVersion] = frozenset()  # what packed weights are views of
        self._directory: Path | None = None
        self._tokenizer: Tokenizer | None = None
        self._grammars = None
        self._choices = language_backend, vision_backend, kv_cache_dtype
        self._build(dtype_name(dtype) or "float32")

    def _build(self, dtype: str) -> None:
        """Make the components, without weights, and the caches for them."""
        chosen = choose_components(dtype, *self._choices)
        self.dtype = dtype
        self.vision_tower, self.mm_projector = make_vision(self.config, chosen, dtype)
        if runs_on_kernels(chosen.language_model):
            self.language_model = chosen.language_model(self.config, dtype, self._choices[-1])
        else:
            self.language_model = chosen.language_model(self.config, dtype)
        self._features = ImageFeatures(self.vision_tower, self.mm_projector)
        self._make_caches()

    def _make_caches(self) -> None:
        self._caches: WeakSet[KVCache] = WeakSet()
        self._pool = CachePool(self._make_cache)
        self.reset_caches()

    def _cast(self, dtype: str) -> None:
        """Convert the weights in place: another model is made and filled, and this one takes its components at last."""
        from .checkpoint.casting import check_range, entries_in_memory, fill_from
        from .checkpoint.weights import expected_shapes

        choose_components(dtype, *self._choices)  # raises before anything is computed
        with self.exclusive(), ms.nn.utils.no_init_parameters():
            before = self._named_parameters()
            entries = entries_in_memory(before, self.packed_components(), expected_shapes(self.config)[0])
            check_range(entries, dtype)
            other = Share4V(self.config, dtype, *self._choices)
            fill_from(other._named_parameters(), other.packed_components(), entries, self.config.text_config)
            other.set_train(self.training)
            for name, parameter in other._named_parameters().items():
                parameter.requires_grad = before[name].requires_grad
            self._take_components(other)

    def _take_components(self, other: Share4V) -> None:
        """Replace the components by those of a model of the same config, which is not used any more."""
        features = ImageFeatures(other.vision_tower, other.mm_projector)
        features.max_bytes = self._features.max_bytes
        for name in ("vision_tower", "mm_projector", "language_model"):
            component = getattr(other, name)
            if isinstance(component, nn.Cell):
                self.insert_child_to_cell(name, component)  # setting an attribute would prefix its names once more
            else:
                setattr(self, name, component)
        self.dtype, self._features, self._mapped_files = other.dtype, features, frozenset()
        self._make_caches()

    def _named_parameters(self) -> dict[str, ms.Parameter]:
        return {parameter.name or key: parameter for key, parameter in self.parameters_dict().items()}

    @classmethod
    @explicit_options(LoadOptions)
    def from_pretrained(cls, name_or_path: str | Path, **options: Unpack[LoadArguments]) -> Share4V:
        """Load a checkpoint of any published format for inference; it need not be converted first.

        Args:
            name_or_path: "sharegpt4v-tiny", "sharegpt4v-7b", "sharegpt4v-13b", a directory, a GGUF file, owner/name on
                a hub, or owner/name:TAG for one of a repository's GGUF models. A LLaMA without a vision tower loads
                too, and answers texts only.
            options: the fields of `LoadOptions`, which describes them; other arguments of Hugging Face's
                from_pretrained are accepted or refused as `hugging_face.ARGUMENTS` says.

        Raises:
            FileNotFoundError, HubError: the checkpoint was not found; the message lists what was tried.
            KernelsMissingError: the dtype needs the CPU kernels, and they were not built.
            CheckpointError: a weight is missing, unexpected or has the wrong shape; the message names it.
            ValueError: the config contradicts itself, or an option has an unknown value or one that the device does
                not support.
        """
        load = LoadOptions(**checked_options(MODEL, options, LoadOptions))
        return cls.from_checkpoint(open_checkpoint(name_or_path, load), load)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: LoadOptions | None = None) -> Share4V:
        """Load the model of an open checkpoint for inference; errors are those of `from_pretrained`.

        Args:
            checkpoint: what `Checkpoint.open` returned.
            options: dtype, backends, kv_cache_dtype and numa are read; by default the default options.

        Example:
            >>> from mindone.models.share4v import Share4V, Share4VProcessor
            >>> from mindone.models.share4v.checkpoint import Checkpoint
            >>> checkpoint = Checkpoint.open("sharegpt4v-tiny")
            >>> model, processor = Share4V.from_checkpoint(checkpoint), Share4VProcessor.from_checkpoint(checkpoint)
            >>> model.config is checkpoint.config
            True
        """
        from .checkpoint.loading import load_weights

        options = LoadOptions() if options is None else options
        dtype = loaded_dtype(options.dtype, checkpoint.config.quantization)
        chosen = choose_components(dtype, options.language_backend, options.vision_backend, options.kv_cache_dtype)
        check_stored_integers(checkpoint.config, chosen.language_model)
        config = checkpoint.config_for(dtype) if runs_on_kernels(chosen.language_model) else checkpoint.config
        # `no_init_parameters` sets a flag of the whole process.
        with MINDSPORE, ms.nn.utils.no_init_parameters():
            model = cls(config, dtype, options.language_backend, options.vision_backend, options.kv_cache_dtype)
        # Each parameter already has its type: norms are float32 whatever dtype is.
        model._mapped_files = load_weights(model, checkpoint, packed=model.packed_components())
        if place_weights(model.packed_components(), options.numa):
            model._mapped_files = frozenset()
        model.set_train(False)
        model._directory = checkpoint.directory
        return model

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Give the model to this thread; others that call it wait.

        The model's own methods do this for as long as they compute; `generate` and `stream` let others go on after
        each token. Use it around several calls that no other thread may come between, such as `reset_caches` after
        weights were replaced. Models that are on the CPU kernels compute at the same time. Of the others, which use
        MindSpore's operators, one computes at a time. Threads that take several models must do so in the same order.

        Raises:
            ForkError: this process was forked from the one that loaded the model.
            FileChangedError: a file that weights are mapped from was changed after the model was loaded.

        Example:
            >>> from mindone.models.share4v import Share4V
            >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
            >>> with model.exclusive():
            ...     model.reset_caches()
        """
        check_process()
        with self._runtime(), self._lock:
            for file in self._mapped_files:
                file.check()
            yield

    def _runtime(self) -> AbstractContextManager[object]:
        """Return the lock of MindSpore's runtime if a component uses it while the model computes."""
        components = self.vision_tower, self.mm_projector, self.language_model
        return nullcontext() if all(map(runs_on_kernels, filter(None, components))) else MINDSPORE

    def save_pretrained(
        self, directory: str | Path, max_shard_size: int | str = "5GB", safe_serialization: bool = True
    ) -> None:
        """Write config.json and safetensors that `from_pretrained` reads; no checkpoint is visible until it is whole.

        The processor has a `save_pretrained` of its own.

        Raises:
            ValueError: safe_serialization is False, or the weights are integers of another device than a CPU.
        """
        if not safe_serialization:
            raise ValueError("weights can be written as safetensors only: set safe_serialization=True")
        quantized = precision_of(self.dtype).is_quantized
        if quantized and not runs_on_kernels(self.language_model):
            raise ValueError(
                f"weights that were rounded to {self.dtype} for this device cannot be saved: save the model with "
                "another dtype, or keep the checkpoint that was loaded"
            )
        from .checkpoint.atomic import staged
        from .checkpoint.packed import stored_weights, write_arrays
        from .checkpoint.saving import byte_count, parameter_array, write_shards
        from .checkpoint.weights import expected_shapes

        quantization = self.dtype if quantized else None
        dtype = None if quantization else self.dtype
        shapes, parts = expected_shapes(self.config)[0], self.packed_components()
        with self.exclusive(), staged(directory) as staging:
            layout = quantization and (self.config.stored_layout or LOADED_LAYOUTS[quantization])
            changes: dict[str, Any] = {
                "vision_tower": None,
                "torch_dtype": dtype,
                "quantization": quantization,
                "quantization_layout": layout,
            }
            replace(self.config, **changes).save_pretrained(staging)
            cells = ((name, parameter_array(value)) for name, value in self.parameters_dict().items())
            packed = (pair for part in parts for pair in stored_weights(part, self.dtype, shapes))
            if quantization:
                write_arrays([*cells, *packed], staging)
            else:
                write_shards(chain(cells, packed), staging, byte_count(max_shard_size))

    def packed_components(self) -> list[WeightHolder]:
        """Return the parts that keep their weights themselves, as all on the kernels do; the others' are Parameters."""
        return weight_holders(self.vision_tower, self.mm_projector, self.language_model)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, which stop strings and streaming need; may be set.

        Raises:
            ValueError: the model was not loaded from a checkpoint and none was set.
        """
        from .processing.tokenizer import Tokenizer

        if self._tokenizer is None:
            if self._directory is None:
                raise ValueError("this model has no tokenizer: set model.tokenizer = processor.tokenizer")
            self._tokenizer = Tokenizer.from_pretrained(self._directory)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._grammars = None

    @property
    def image_cache(self) -> ImageFeatures:
        """The cached features of recent images; its `max_bytes` may be set.

        Example:
            >>> from mindone.models.share4v import Share4V
            >>> model = Share4V.from_pretrained("sharegpt4v-tiny")
            >>> model.image_cache.max_bytes = 2**28
        """
        return self._features

    def reset_caches(self) -> None:
        """Drop all that was computed or compiled with earlier weights; needed once weights were replaced.

        A graph of MindSpore 2.7 goes on reading the memory that a parameter had before `set_data` or
        `load_param_into_net`, whatever lies there by now, so graphs go too.
        """
        with self.exclusive():
            self.forget_values()
            self._features.reset_graphs()
            for cache in self._caches:
                cache.reset()

    def forget_values(self) -> None:
        """Use nothing again that earlier weights computed; enough where weights changed in place, as training does it.

        Caches stay, and the graphs compiled for them; what they hold is not recognised any more.
        """
        with self.exclusive():
            self._weights = uuid4().bytes
            self._features.reset()

    def _make_cache(self, batch_size: int, capacity: int) -> KVCache:
        cache = KVCache(self.language_model, batch_size, capacity)
        self._caches.add(cache)
        return cache

    def encode_images(self, pixel_values: Array) -> Tensor:
        """pixel_values [N, 3, S, S] float32 -> features in the language model's space [N, P, H].

        An image's features do not depend on what else is in the batch.

        Raises:
            ValueError: the shape is another, or a value is not finite.
        """
        pixels = check_pixels(self.config, pixel_values)
        digests = [pixel_digest(image) for image in pixels]
        with self.exclusive():
            features = self._features.of(pixels, digests)
            if features is None:
                shape = 0, self.config.num_image_tokens, self.config.text_config.hidden_size
                return Tensor(np.zeros(shape, np.float32))
            return features

    def construct(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        attention_mask: Array | None = None,
        inputs_embeds: Array | None = None,
    ) -> Share4VOutput:
        """Return the logits of whole prompts, computed without a cache, in MindSpore's PyNative mode.

        `generate` and `stream` take `past_key_values` and run in either mode.

        Args:
            input_ids: int [B, L], with config.image_token_id (or IMAGE_TOKEN_INDEX) where an image goes.
            pixel_values: float32 [N, 3, S, S], the images in order over the batch.
            attention_mask: int [B, L], 0 at padding, which may be on either side.
            inputs_embeds: float32 [B, T, H] in place of input_ids and pixel_values.

        Raises:
            ValueError: shapes disagree, or the numbers of images and placeholders.
            RuntimeError: MindSpore's context is in GRAPH_MODE.
        """
        prompts = self._embed_prompts(input_ids, pixel_values, attention_mask, inputs_embeds)
        logits = self.language_model(ops.gather(prompts.table, Tensor(prompts.index), 0), prompts.lengths)
        width = prompts.index.shape[1]
        mask = (np.arange(width) < prompts.lengths[:, None]).astype(np.int64)
        if attention_mask is None or as_numpy(attention_mask)[:, 0].all():
            return Share4VOutput(logits, mask)
        # The caller pads on the left: each text moves there to the right end.
        columns = (np.arange(width) + prompts.lengths[:, None]) % width  # [B, T]
        rows = columns + np.arange(len(prompts))[:, None] * width
        turned = ops.gather(logits.reshape(-1, logits.shape[-1]), Tensor(rows.astype(np.int32)), 0)
        return Share4VOutput(turned, np.take_along_axis(mask, columns, 1))

    def __call__(self, *args: Any, **kwargs: Any) -> Share4VOutput:
        if ms.get_context("mode") == ms.GRAPH_MODE:
            raise RuntimeError(
                "model(...) runs in PyNative mode alone: call mindspore.set_context(mode=mindspore.PYNATIVE_MODE); "
                "generate and stream run in GRAPH_MODE too"
            )
        with self.exclusive(), MINDSPORE:  # `construct` uses operators, whatever the components are
            output: Share4VOutput = super().__call__(*args, **kwargs)
            return output

    @staticmethod
    def merge(token_embeds: Tensor, image_features: Tensor | None, index: Tensor) -> Tensor:
        """Put features [N, P, H] among embeddings [B, L, H] by `index` [B, T] (merging.MergePlan) -> [B, T, H]."""
        return ops.gather(embedding_table(token_embeds, image_features), index, 0)

    def prepare_inputs(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        attention_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        image_features: Tensor | None = None,
    ) -> Prompts:
        """Embed prompts and their images for generation: the input of `ContinuousBatch.join`.

        Args:
            input_ids, pixel_values, attention_mask, inputs_embeds: as in `generate`.
            image_features: [N, P, H], the result of `encode_images`, in place of pixel_values. Encoding the images of
                several prompts in one call is faster than one by one.

        Raises:
            ValueError: the inputs contradict each other, or a prompt fills the model's context.
        """
        with self.exclusive():
            limit = self.config.text_config.context_length
            return self._embed_prompts(input_ids, pixel_values, attention_mask, inputs_embeds, image_features, limit)

    def _embed_prompts(
        self,
        input_ids: Array | None,
        pixel_values: Array | None,
        attention_mask: Array | None,
        inputs_embeds: Array | None,
        image_features: Tensor | None = None,
        context_length: int | None = None,
    ) -> Prompts:
        """As `prepare_inputs`. Lengths are checked before anything is embedded; with None, nothing is generated."""
        mask = None if attention_mask is None else as_numpy(attention_mask)
        if inputs_embeds is not None:
            if input_ids is not None or pixel_values is not None or image_features is not None:
                raise ValueError("give either inputs_embeds, or input_ids and pixel_values, not both")
            return self._prompts_from_embeddings(inputs_embeds, mask, context_length)
        if input_ids is None:
            raise ValueError("input_ids or inputs_embeds must be given")
        ids = as_numpy(input_ids).astype(np.int64)
        return self._prompts_from_ids(ids, mask, pixel_values, image_features, context_length)

    def _prompts_from_embeddings(
        self, inputs_embeds: Array, mask: np.ndarray | None, context_length: int | None
    ) -> Prompts:
        """inputs_embeds [B, T, H], mask [B, T]."""
        embeds = inputs_embeds if isinstance(inputs_embeds, Tensor) else Tensor(np.asarray(inputs_embeds, np.float32))
        hidden = self.config.text_config.hidden_size
        if embeds.ndim != 3 or embeds.shape[-1] != hidden:
            raise ValueError(f"inputs_embeds must be [B, T, {hidden}], got {list(embeds.shape)}")
        plan = plan_merge(np.zeros(embeds.shape[:2], np.int64), mask, 0, 0)
        check_length(int(plan.lengths.max()), context_length, self.config.text_config)
        if not np.isfinite(as_numpy(embeds)).all():
            raise ValueError("inputs_embeds are not all finite numbers")
        with MINDSPORE:  # `astype` is an operator of MindSpore's
            table = stack_rows([embeds.astype(self.language_model.activations)])
        ids = np.full(plan.index.shape, -1)  # unknown
        return Prompts(table, plan.index, ids, plan.lengths, [[] for _ in plan.lengths])

    def _prompts_from_ids(
        self,
        ids: np.ndarray,
        mask: np.ndarray | None,
        pixel_values: Array | None,
        image_features: Tensor | None,
        context_length: int | None,
    ) -> Prompts:
        """ids int64 [B, L], mask [B, L], images as pixels [N, 3, S, S] or features [N, P, H]."""
        pixels = check_pixels(self.config, pixel_values)
        if image_features is not None:
            self._check_features(image_features, pixels)
        images = len(pixels) if image_features is None else len(image_features)
        plan = plan_merge(ids, mask, images, self.config.num_image_tokens, self.config.image_token_id)
        check_length(int(plan.lengths.max()), context_length, self.config.text_config)
        placed = plan.place(ids, -1)  # [B, T]
        vocabulary = self.config.text_config.vocab_size
        check_vocabulary(plan, placed, vocabulary)
        tokens = Tensor(np.where((ids < 0) | (ids >= vocabulary), 0, ids).astype(np.int32))
        embeds = self.language_model.embed(tokens)  # [B, L, H]
        names: list[list[bytes]] = [[] for _ in plan.lengths]
        if image_features is None:
            digests = [pixel_digest(image) for image in pixels]
            image_features = self._features.of(pixels, digests)
            names = [
                prompt_signature(placed[row, :length], plan.images[row, :length], digests, self._weights)
                for row, length in enumerate(plan.lengths)
            ]
        table = stack_rows([embeds] if image_features is None else [embeds, image_features])
        return Prompts(table, plan.index, placed, plan.lengths, names)

    def _check_features(self, image_features: Tensor, pixels: np.ndarray) -> None:
        patches, hidden = self.config.num_image_tokens, self.config.text_config.hidden_size
        if len(pixels):
            raise ValueError("give either pixel_values or image_features, not both")
        if image_features.ndim != 3 or image_features.shape[1:] != (patches, hidden):
            raise ValueError(f"image_features must be [N, {patches}, {hidden}], got {list(image_features.shape)}")
