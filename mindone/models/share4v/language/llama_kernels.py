"""LLaMA on the CPU kernels: one call per layer, weights read in place, finished sequences skipped.

Shapes are named as in llama.py.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ..configuration import Share4VConfig
from ..kernels.cache_memory import KV_CACHE_DTYPES, CacheMemory
from ..kernels.component import KernelComponent
from ..kernels.operators import embedding, layer, linear
from ..quantization import precision_of
from .rope_tables import rope_tables
from .weights import language_plans

PREFILL_ROWS = 512  # tokens of one prefill step, over all sequences; the kernels process 256 at a time


class KernelLlamaForCausalLM(KernelComponent):
    """`llama.LlamaForCausalLM` on the CPU kernels: inference only, also with int8 and int4 weights.

    Args:
        config: configuration of the full model; only `text_config` is used.
        dtype: "float32", "float16", "bfloat16", "int8" or "int4".
        kv_cache_dtype: type of keys and values, "float32", "float16" or "int8"; by default `dtype` determines it.

    Raises:
        ValueError: a dtype is not supported.
    """

    activations = ms.float32
    allocates_cache_lazily = True

    def __init__(self, config: Share4VConfig, dtype: str = "float32", kv_cache_dtype: str | None = None) -> None:
        self.config = config.text_config
        super().__init__(language_plans(config, dtype), {})
        self.kv_cache_dtype = kv_cache_dtype or precision_of(dtype).kv_cache
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            raise ValueError(
                f"kv_cache_dtype {kv_cache_dtype!r}: expected one of {', '.join(KV_CACHE_DTYPES)}, or None"
            )

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> embeddings [B, T, H]."""
        flat = np.ascontiguousarray(ids.asnumpy(), np.int32).reshape(-1)
        return Tensor(self._embed(flat).reshape(*ids.shape, -1))

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        """ids int32 [R] -> embeddings [R, H]."""
        return embedding(ids, self.array(self.names[0]), self.config.hidden_size)

    def __call__(self, inputs_embeds: Tensor, lengths: np.ndarray | None = None) -> Tensor:
        """inputs_embeds [B, T, H] of sequences of `lengths` [B] tokens, from position 0 -> float32 logits [B, T, V]."""
        batch, width = inputs_embeds.shape[:2]
        totals = np.full(batch, width) if lengths is None else lengths
        cached = self.new_cached(batch, width)
        embeds, step, logits = inputs_embeds.asnumpy(), cached.chunk, []
        for first in range(0, width, step):
            positions = np.broadcast_to(np.arange(first, first + step), (batch, step))
            is_token = positions < totals[:, None]  # [B, C]
            chunk = embeds[:, np.minimum(positions[0], width - 1)]  # [B, C, H]
            index = np.where(is_token, np.arange(batch * step).reshape(batch, step), -1)
            rows = cached.logits(chunk, np.where(is_token, positions, -1), totals, index.reshape(-1))  # [B * C, V]
            logits.append(rows.reshape(batch, step, -1)[:, : width - first])
        return Tensor(np.concatenate(logits, 1))

    def run_prefill(
        self, x: np.ndarray, index: np.ndarray, rows: np.ndarray, cos: np.ndarray, sin: np.ndarray, memory: np.ndarray
    ) -> np.ndarray:
        """x [R, H] -> logits [M, V] of the rows `index` [M]; zeros where the index is -1."""
        _, *layers, head = self.arrays(*self.names)
        for block in layers:
            x = layer(x, block, memory, rows, cos, sin)
        return linear(x, index, head, self.config.vocab_size)

    def run_decode(
        self, ids: np.ndarray, index: np.ndarray, rows: np.ndarray, cos: np.ndarray, sin: np.ndarray, memory: np.ndarray
    ) -> np.ndarray:
        """ids [B] -> logits [B, V]; zeros where index [B] is -1."""
        return self.run_prefill(self._embed(ids), index, rows, cos, sin, memory)

    def new_cached(self, batch_size: int, capacity: int) -> KernelCachedLlama:
        """Return this model with a cache for `batch_size` sequences of up to `capacity` tokens.

        Weights are shared.
        """
        return KernelCachedLlama(self, batch_size, capacity)


class KernelCachedLlama:
    """LLaMA with a KV cache for `batch_size` sequences; implements protocols.CachedLanguageModel.

    Attributes:
        chunk: tokens per sequence in one prefill step.
        used: number of slots, from the first, that any sequence has written to.
    """

    can_copy_prefix = True
    skips_padding = True

    def __init__(self, llama: KernelLlamaForCausalLM, batch_size: int, capacity: int) -> None:
        self.llama = llama
        self.config = llama.config
        self.chunk = max(64, PREFILL_ROWS // batch_size // 64 * 64)
        text = self.config
        self.cache = CacheMemory(
            text.num_hidden_layers, batch_size, text.kv_heads, text.head_size, capacity, llama.kv_cache_dtype
        )
        self.used = 0

    def _rows_and_tables(self, positions: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the kernel's rows, int32 [B * C, 4], cos and sin [B * C, D] for positions [B, C].

        A row is (sequence, slot, 0, slot + 1): slots are positions, and -1 marks padding, which is not computed.
        """
        cos, sin = rope_tables(self.config, np.maximum(positions, 0), totals)
        size = self.config.head_size
        rows = np.zeros((positions.size, 4), np.int32)
        rows[:, 0] = np.repeat(np.arange(len(positions)), positions.shape[1])
        rows[:, 1] = positions.reshape(-1)
        rows[:, 3] = rows[:, 1] + 1
        self.used = max(self.used, int(positions.max()) + 1)
        return rows, cos.reshape(-1, size), sin.reshape(-1, size)

    def logits(
        self, inputs_embeds: np.ndarray, positions: np.ndarray, totals: np.ndarray, index: np.ndarray
    ) -> np.ndarray:
        """inputs_embeds [B, C, H] at positions [B, C] -> logits [M, V] of rows `index` [M] of [B * C]; -1: zeros."""
        rows, cos, sin = self._rows_and_tables(positions, totals)
        x = np.ascontiguousarray(inputs_embeds, np.float32).reshape(-1, self.config.hidden_size)
        is_token = positions.reshape(-1) >= 0
        if not is_token.all():  # a layer's intermediate results have a row for each of its inputs
            moved = np.where(is_token, np.cumsum(is_token) - 1, -1)
            index = np.where(index >= 0, moved[index], -1)
            x, rows, cos, sin = x[is_token], rows[is_token], cos[is_token], sin[is_token]
        return self.llama.run_prefill(x, index.astype(np.int32), rows, cos, sin, self.cache.memory)

    def prefill(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, last: np.ndarray) -> Tensor:
        """Process one chunk of each prompt; arguments and result as for `llama.CachedLlama.prefill`.

        Logits are computed only for the prompts that end in this chunk; the others are zeros.
        """
        sequences = np.arange(len(positions))
        ends_here = positions[sequences, last] == totals - 1
        index = np.where(ends_here, sequences * positions.shape[1] + last, -1)
        return Tensor(self.logits(inputs_embeds.asnumpy(), positions, totals, index))

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        """Process one token of each sequence: ids and positions int [B] (-1: finished) -> float32 logits [B, V]."""
        rows, cos, sin = self._rows_and_tables(positions[:, None], np.maximum(positions, 0) + 1)
        index = np.where(positions >= 0, np.arange(len(positions)), -1).astype(np.int32)
        step = self.llama.run_decode(ids.astype(np.int32), index, rows, cos, sin, self.cache.memory)
        return Tensor(step)

    def copy_sequences(self, source: KernelCachedLlama, indices: np.ndarray) -> None:
        """Copy sequence `indices[i]` of `source` (of equal capacity; may be this cache) to every sequence i."""
        self.used = source.used
        self.cache.copy_sequences(source.cache, indices, self.used)

    def copy_prefix(self, sequence: int, source: KernelCachedLlama, length: int, origin: int = 0) -> None:
        """Copy the first `length` tokens of sequence `origin` of `source` to `sequence`; the others are unchanged."""
        self.used = max(self.used, length)
        self.cache.copy_prefix(sequence, source.cache, length, origin)
