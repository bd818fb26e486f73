"""mindnlp's LLaMA as a language model; it runs in a separate process (`worker`), which this module controls."""

from __future__ import annotations

from itertools import count

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ...checkpoint.loading import cast
from ...checkpoint.weights import expected_shapes
from ...configuration import Share4VConfig
from ...kernels.component import WeightHolder
from ...language.rope_tables import rope_tables
from .process import Worker

WORKER = "mindone.models.share4v.integrations.mindnlp.worker"
DTYPES = ("float32", "float16")
PREFIX = "language_model."  # our name of a weight is this prefix and Hugging Face's name
# The fields shared with LlamaConfig, except rotary scaling: the rotary tables are computed on this side.
FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
)


class MindNLPLlamaForCausalLM(WeightHolder):
    """LLaMA as implemented by mindnlp, for inference only; implements protocols.LanguageModel.

    Needs the extra `mindnlp`. Weights, keys and values are in the worker process, which ends with this object. Tested
    only on CPUs.

    Args:
        config: configuration of the full model; only `text_config` is used.
        dtype: "float32" or "float16", for all weights and the arithmetic.

    Raises:
        ValueError: the dtype is not supported, or mindnlp's model has other weights than `config`.
        WorkerError: mindnlp cannot be imported; the message says what to install.

    Example:
        >>> model = Share4V.from_pretrained("sharegpt4v-tiny", language_backend="mindnlp")  # doctest: +SKIP
    """

    activations = ms.float32
    allocates_cache_lazily = True

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not supported by mindnlp's LLaMA: use {' or '.join(DTYPES)}")
        shapes = expected_shapes(config)[0]
        super().__init__((), {name: shape for name, shape in shapes.items() if name.startswith(PREFIX)})
        self.config, self.dtype = config.text_config, dtype
        self.worker = Worker(WORKER, "mindnlp")
        self._missing = set(self.plain)  # weights that were not loaded yet
        self._cache_ids = count()
        self._freed: list[int] = []  # ids of caches to free in the worker
        settings = {name: getattr(self.config, name) for name in FIELDS}
        built = {PREFIX + name: shape for name, shape in self.worker.call("build", settings, dtype).items()}
        if built != self.plain:
            different = sorted(name for name in {*built, *self.plain} if built.get(name) != self.plain.get(name))
            raise ValueError(f"mindnlp's LLaMA and this config differ in the weights {', '.join(different[:10])}")

    def put(self, name: str, array: np.ndarray) -> None:
        """Send a weight to the worker, in the model's dtype."""
        self.worker.call("put", name.removeprefix(PREFIX), cast(array, self.dtype, name))
        self._missing.discard(name)

    def array(self, name: str) -> np.ndarray:
        """Return the weight of this name."""
        self._check()
        array: np.ndarray = self.worker.call("array", name.removeprefix(PREFIX))
        return array

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> embeddings [B, T, H]."""
        self._check()
        return Tensor(self.worker.call("embed", ids.asnumpy()))

    def __call__(self, inputs_embeds: Tensor, lengths: np.ndarray | None = None) -> Tensor:
        """inputs_embeds [B, T, H] of sequences of `lengths` [B] tokens, from position 0 -> float32 logits [B, T, V]."""
        batch, width = inputs_embeds.shape[:2]
        totals = np.full(batch, width) if lengths is None else lengths
        positions = np.where(np.arange(width) < totals[:, None], np.arange(width), -1)
        return self.new_cached(batch, width).forward(inputs_embeds.asnumpy(), positions, totals, None)

    def new_cached(self, batch_size: int, capacity: int) -> MindNLPCachedLlama:
        """Return this model with a cache for `batch_size` sequences; its memory grows with them."""
        self._check()
        cache_id = next(self._cache_ids)
        self.worker.call("free_caches", self._freed.copy())
        self._freed.clear()
        self.worker.call("new_cache", cache_id)
        return MindNLPCachedLlama(self, cache_id)

    def free(self, cache_id: int) -> None:
        """Free a cache's memory when the next cache is created."""
        self._freed.append(cache_id)

    def _check(self) -> None:
        if self._missing:
            raise RuntimeError(
                f"the weights of {min(self._missing)} were not loaded: create the model with Share4V.from_pretrained"
            )


class MindNLPCachedLlama:
    """A cache in the worker process; implements protocols.CachedLanguageModel.

    Attributes:
        chunk: tokens per sequence in one prefill step.
    """

    chunk = 512  # large, since shapes are not compiled and padding after the longest sequence is not computed
    can_copy_prefix = False
    skips_padding = False

    def __init__(self, llama: MindNLPLlamaForCausalLM, cache_id: int) -> None:
        self.llama = llama
        self.cache_id = cache_id

    def __del__(self) -> None:
        self.llama.free(self.cache_id)

    def forward(self, tokens: np.ndarray, positions: np.ndarray, totals: np.ndarray, last: np.ndarray | None) -> Tensor:
        """Run the model.

        Args:
            tokens: ids [B, T] or embeddings [B, T, H].
            positions: int [B, T]; -1 marks padding.
            totals: int [B], the lengths of the sequences.
            last: int [B], the token of each sequence whose logits are returned; None for all tokens.

        Returns:
            float32 logits [B, V], or [B, T, V] for all tokens.
        """
        cos, sin = rope_tables(self.llama.config, np.maximum(positions, 0), totals)
        tables = cos[:, 0], sin[:, 0]  # [B, T, D]
        return Tensor(self.llama.worker.call("forward", self.cache_id, tokens, positions, tables, last))

    def prefill(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, last: np.ndarray) -> Tensor:
        """Process one chunk of each prompt; see protocols.CachedLanguageModel.prefill."""
        width = 1 + int(np.flatnonzero((positions >= 0).any(0)).max(initial=0))
        inside = np.minimum(last, width - 1)  # ignored for prompts that do not end in this chunk
        return self.forward(inputs_embeds.asnumpy()[:, :width], positions[:, :width], totals, inside)

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        """Process one token of each sequence: ids and positions int [B] (-1: finished) -> float32 logits [B, V]."""
        totals = np.maximum(positions, 0) + 1
        return self.forward(ids[:, None], positions[:, None], totals, np.zeros(len(ids), np.int64))

    def copy_sequences(self, source: MindNLPCachedLlama, indices: np.ndarray) -> None:
        """Copy sequence `indices[i]` of `source` (may be this cache) to every sequence i."""
        self.llama.worker.call("copy_sequences", self.cache_id, source.cache_id, indices)
