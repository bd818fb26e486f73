"""mindnlp's LLaMA as a language model: it runs in a process of its own (`mindnlp_worker`), this one drives it."""

from __future__ import annotations

from itertools import count

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ...checkpoint.loading import cast
from ...checkpoint.weights import expected_shapes
from ...configuration import Share4VConfig
from ...kernels.component import WeightHolder
from ...language.rope import rope_tables
from .process import Worker

WORKER = "mindone.models.share4v.integrations.mindnlp.worker"
DTYPES = ("float32", "float16")
PREFIX = "language_model."  # our name of a weight is Hugging Face's behind this
# Fields that LlamaConfig has too; rotary scaling is not among them, since tables are made here.
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
    """LLaMA as mindnlp runs it, for inference; as `llama.LlamaForCausalLM`.

    Needs the extra `mindnlp`. Weights, keys and values are in the other process, which ends with this object. All of
    it has run on CPUs alone.

    Args:
        config: the whole model's config; `text_config` is read.
        dtype: "float32" or "float16", the type of all weights, and of the arithmetic.

    Raises:
        ValueError: the dtype is another.
        WorkerError: mindnlp cannot be imported; the message says what to install.

    Example:
        >>> model = Share4V.from_pretrained("sharegpt4v-tiny", language_backend="mindnlp")  # doctest: +SKIP
    """

    activations = ms.float32
    allocates_cache_lazily = True

    def __init__(self, config: Share4VConfig, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not supported by mindnlp's LLaMA: expected {' or '.join(DTYPES)}")
        shapes = expected_shapes(config)[0]
        super().__init__((), {name: shape for name, shape in shapes.items() if name.startswith(PREFIX)})
        self.config, self.dtype = config.text_config, dtype
        self.worker = Worker(WORKER, "mindnlp")
        self._missing = set(self.plain)
        self._numbers = count()
        self._freed: list[int] = []
        settings = {name: getattr(self.config, name) for name in FIELDS}
        built = {PREFIX + name: shape for name, shape in self.worker.call("build", settings, dtype).items()}
        if built != self.plain:
            different = sorted(name for name in {*built, *self.plain} if built.get(name) != self.plain.get(name))
            raise ValueError(f"mindnlp's LLaMA has other weights than this config: {', '.join(different[:10])}")

    def put(self, name: str, array: np.ndarray) -> None:
        """Take a weight, and hand it over in the model's type."""
        self.worker.call("put", name.removeprefix(PREFIX), cast(array, self.dtype, name))
        self._missing.discard(name)

    def array(self, name: str) -> np.ndarray:
        """Return what was put under a name."""
        self._check()
        array: np.ndarray = self.worker.call("array", name.removeprefix(PREFIX))
        return array

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> embeddings [B, T, H]."""
        self._check()
        return Tensor(self.worker.call("embed", ids.asnumpy()))

    def __call__(self, inputs_embeds: Tensor, lengths: np.ndarray | None = None) -> Tensor:
        """inputs_embeds [B, T, H], texts of `lengths` [B] beginning at position 0 -> float32 logits [B, T, V]."""
        batch, width = inputs_embeds.shape[:2]
        totals = np.full(batch, width) if lengths is None else lengths
        positions = np.where(np.arange(width) < totals[:, None], np.arange(width), -1)
        return self.new_cached(batch, width).forward(inputs_embeds.asnumpy(), positions, totals, None)

    def new_cached(self, batch_size: int, capacity: int) -> MindNLPCachedLlama:
        """Return this model with room for `batch_size` texts; memory is taken as they grow."""
        self._check()
        number = next(self._numbers)
        self.worker.call("free_caches", self._freed.copy())
        self._freed.clear()
        self.worker.call("new_cache", number)
        return MindNLPCachedLlama(self, number)

    def free(self, number: int) -> None:
        """Let a cache's memory be freed before the next one is made."""
        self._freed.append(number)

    def _check(self) -> None:
        if self._missing:
            raise RuntimeError(
                f"the weights of {min(self._missing)} were not loaded: create the model with Share4V.from_pretrained"
            )


class MindNLPCachedLlama:
    """One cache of the other process; see `cached.CachedLlama`.

    Attributes:
        chunk: tokens of each text that one prefill step takes.
    """

    chunk = 512  # nothing is compiled for a shape, and no padding behind the longest text is computed
    can_copy_prefix = False
    skips_padding = False

    def __init__(self, llama: MindNLPLlamaForCausalLM, number: int) -> None:
        self.llama, self.number = llama, number

    def __del__(self) -> None:
        self.llama.free(self.number)

    def forward(self, tokens: np.ndarray, positions: np.ndarray, totals: np.ndarray, last: np.ndarray | None) -> Tensor:
        """tokens (ids [B, T] or embeddings [B, T, H]) at positions [B, T] of texts of `totals` [B] -> float32 logits.

        [B, V] of the tokens `last` [B], or [B, T, V].
        """
        cos, sin = rope_tables(self.llama.config, np.maximum(positions, 0), totals)
        tables = cos[:, 0], sin[:, 0]  # [B, T, D]
        return Tensor(self.llama.worker.call("forward", self.number, tokens, positions, tables, last))

    def prefill(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, last: np.ndarray) -> Tensor:
        """Take in one chunk of each text; arguments and result as `cached.CachedLlama.prefill` says."""
        width = 1 + int(np.flatnonzero((positions >= 0).any(0)).max(initial=0))
        inside = np.minimum(last, width - 1)  # of a text that ends elsewhere, anything will do
        return self.forward(inputs_embeds.asnumpy()[:, :width], positions[:, :width], totals, inside)

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        """Take in one token of each text: ids and positions int [B] (-1 for a text that is done) -> logits [B, V]."""
        totals = np.maximum(positions, 0) + 1
        return self.forward(ids[:, None], positions[:, None], totals, np.zeros(len(ids), np.int64))

    def copy_sequences(self, source: MindNLPCachedLlama, texts: np.ndarray) -> None:
        """Let text i go on from what text `texts`[i] of `source` (maybe this one) holds."""
        self.llama.worker.call("copy_sequences", self.number, source.number, texts)
