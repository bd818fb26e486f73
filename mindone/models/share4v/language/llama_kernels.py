"""LLaMA on the CPU kernels: one operator per layer, weights read in place, finished sequences skipped.

Shapes are named as in llama.py.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ..configuration import Share4VConfig
from ..kernels.cache_memory import KV_CACHE_DTYPES, CacheMemory
from ..kernels.component import KernelComponent
from ..kernels.library import library
from ..kernels.operators import embedding_operator, layer_operator, linear_operator
from ..nn.graph import Graph
from ..quantization import precision_of
from .rope_tables import rope_tables
from .weights import language_plans

PREFILL_ROWS = 512  # tokens of one prefill step, over all sequences; the kernels process 256 at a time


class PrefillGraph(Graph):
    """All layers, then the final norm and the output layer for selected rows."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.layer = layer_operator()
        self.head = linear_operator(vocabulary)

    def construct(self, x, index, rows, cos, sin, cache, head, *layers):  # type: ignore[no-untyped-def]
        """x [B, C, H] or [R, H] -> logits [M, V] of its rows `index` [M]; zeros where the index is -1."""
        x = x.reshape(-1, self.hidden)  # [R, H]
        for block in layers:
            x = self.layer(x, block, cache, rows, cos, sin)
        return self.head(x, index, head)


class DecodeGraph(Graph):
    """One token per sequence, from id to logits."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = embedding_operator(hidden)
        self.embedded = PrefillGraph(hidden, vocabulary)

    def construct(self, ids, index, rows, cos, sin, cache, table, head, *layers):  # type: ignore[no-untyped-def]
        """ids [B] -> logits [B, V] of the rows `index` [B]; zeros where the index is -1."""
        return self.embedded(self.embedding(ids, table), index, rows, cos, sin, cache, head, *layers)


class KernelLlamaForCausalLM(KernelComponent):
    """`llama.LlamaForCausalLM` on the CPU kernels: inference only, also with int8 and int4 weights.

    Args:
        config: configuration of the full model; only `text_config` is used.
        dtype: "float32", "float16", "int8" or "int4".
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
        self._prefill = PrefillGraph(self.config.hidden_size, self.config.vocab_size)
        self._decode = DecodeGraph(self.config.hidden_size, self.config.vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> embeddings [B, T, H]."""
        flat = np.ascontiguousarray(ids.asnumpy(), np.int32).reshape(-1)
        out = np.empty((flat.size, self.config.hidden_size), np.float32)
        library().call("share4v_embedding", [flat, self.array(self.names[0])], out)
        return Tensor(out.reshape(*ids.shape, -1))

    def __call__(self, inputs_embeds: Tensor, lengths: np.ndarray | None = None) -> Tensor:
        """inputs_embeds [B, T, H] of sequences of `lengths` [B] tokens, from position 0 -> float32 logits [B, T, V]."""
        batch, width = inputs_embeds.shape[:2]
        totals = np.full(batch, width) if lengths is None else lengths
        # The capacity of all other caches: another one would compile new graphs for every length.
        cached = self.new_cached(batch, max(width, self.config.context_length))
        step, logits = cached.chunk, []
        for first in range(0, width, step):
            positions = np.broadcast_to(np.arange(first, first + step), (batch, step))
            is_token = positions < totals[:, None]  # [B, C]
            columns = np.minimum(positions[0], width - 1).astype(np.int32)
            chunk = ops.gather(inputs_embeds, Tensor(columns), 1)  # [B, C, H]
            index = np.where(is_token, np.arange(batch * step).reshape(batch, step), -1)
            rows = cached.logits(chunk, np.where(is_token, positions, -1), totals, index.reshape(-1))  # [B * C, V]
            logits.append(rows.reshape(batch, step, -1)[:, : width - first])
        return ops.concat(logits, 1)

    def run_prefill(
        self, x: Tensor, index: np.ndarray, rows: np.ndarray, cos: Tensor, sin: Tensor, memory: Tensor
    ) -> Tensor:
        """x [B, C, H] -> logits [M, V] of the rows `index` [M] of [B * C]; zeros where the index is -1."""
        _, *layers, head = self.tensors(*self.names)
        return self._prefill.compile_and_run(x, Tensor(index), Tensor(rows), cos, sin, memory, head, *layers)

    def run_decode(
        self, ids: np.ndarray, index: np.ndarray, rows: np.ndarray, cos: Tensor, sin: Tensor, memory: Tensor
    ) -> Tensor:
        """ids [B] -> logits [B, V]; zeros where index [B] is -1."""
        table, *layers, head = self.tensors(*self.names)
        inputs = Tensor(ids), Tensor(index), Tensor(rows), cos, sin
        return self._decode.compile_and_run(*inputs, memory, table, head, *layers)

    def new_cached(self, batch_size: int, capacity: int) -> KernelCachedLlama:
        """Return this model with a cache for `batch_size` sequences of up to `capacity` tokens.

        Weights and compiled graphs are shared.
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
        self._memory = Tensor.from_numpy(self.cache.memory)
        self.used = 0

    def _rows_and_tables(self, positions: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, Tensor, Tensor]:
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
        return rows, Tensor(cos.reshape(-1, size)), Tensor(sin.reshape(-1, size))

    def logits(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, index: np.ndarray) -> Tensor:
        """inputs_embeds [B, C, H] at positions [B, C] -> logits [M, V] of rows `index` [M] of [B * C]; -1: zeros."""
        rows, cos, sin = self._rows_and_tables(positions, totals)
        return self.llama.run_prefill(inputs_embeds, index.astype(np.int32), rows, cos, sin, self._memory)

    def prefill(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, last: np.ndarray) -> Tensor:
        """Process one chunk of each prompt; arguments and result as for `llama.CachedLlama.prefill`.

        Logits are computed only for the prompts that end in this chunk; the others are zeros.
        """
        sequences = np.arange(len(positions))
        ends_here = positions[sequences, last] == totals - 1
        index = np.where(ends_here, sequences * positions.shape[1] + last, -1)
        return self.logits(inputs_embeds, positions, totals, index)

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        """Process one token of each sequence: ids and positions int [B] (-1: finished) -> float32 logits [B, V]."""
        rows, cos, sin = self._rows_and_tables(positions[:, None], np.maximum(positions, 0) + 1)
        index = np.where(positions >= 0, np.arange(len(positions)), -1).astype(np.int32)
        return self.llama.run_decode(ids.astype(np.int32), index, rows, cos, sin, self._memory)

    def copy_sequences(self, source: KernelCachedLlama, indices: np.ndarray) -> None:
        """Copy sequence `indices[i]` of `source` (of equal capacity; may be this cache) to every sequence i."""
        self.used = source.used
        self.cache.copy_sequences(source.cache, indices, self.used)

    def copy_prefix(self, sequence: int, source: KernelCachedLlama, length: int, origin: int = 0) -> None:
        """Copy the first `length` tokens of sequence `origin` of `source` to `sequence`; the others are unchanged."""
        self.used = max(self.used, length)
        self.cache.copy_prefix(sequence, source.cache, length, origin)
