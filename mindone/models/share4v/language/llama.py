"""LLaMA (Touvron et al. 2023) with grouped key/value heads, without a cache or with a preallocated KV cache.

The first part of the file is the model; `CachedLlama` and the cells below it add the cache, with two compiled graphs of
fixed shapes: prefill of a chunk, and decoding of one token per sequence.

Shapes: B sequences, T tokens (C in a chunk), S cache slots, H hidden size, V vocabulary; Hq query heads and Hkv
key/value heads of size D.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ..configuration import Share4VConfig, TextConfig
from ..nn.device_operators import DeviceOperators
from ..nn.fused import Arithmetic
from ..nn.graph import Graph
from ..nn.host_ops import gather_rows
from ..nn.layers import Rows, split_heads, widened
from .rope import Rotary
from .rope_tables import rope_tables


def attention_sizes(config: TextConfig) -> tuple[int, int, int, int]:
    """Return the sizes that select an attention operator: query heads, key/value heads, head size, maximum keys."""
    return config.num_attention_heads, config.kv_heads, config.head_size, config.context_length + 1


class LlamaAttention(nn.Cell):
    """Causal self-attention, optionally over the keys and values of a cache."""

    def __init__(self, config: TextConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.kv_heads, config.head_size
        hidden, bias, integers = config.hidden_size, config.attention_bias, arithmetic.integers
        self.q_proj = arithmetic.linear(hidden, self.heads * self.head_dim, bias, integers)
        self.k_proj = arithmetic.linear(hidden, self.kv_heads * self.head_dim, bias, integers)
        self.v_proj = arithmetic.linear(hidden, self.kv_heads * self.head_dim, bias, integers)
        self.o_proj = arithmetic.linear(self.heads * self.head_dim, hidden, bias, integers)
        self.rotate_query = Rotary(self.heads, self.head_dim, arithmetic.operators)
        self.rotate_key = Rotary(self.kv_heads, self.head_dim, arithmetic.operators)
        sizes = attention_sizes(config)
        self.attend = arithmetic.attention(*sizes)
        self.attend_one: Any = arithmetic.one_query_attention(*sizes)

    def construct(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, cache: Any = None, cache_rows: Tensor | None = None
    ) -> Tensor:
        """x [B, T, H] -> [B, T, H]; see LlamaModel.construct."""
        query = self.rotate_query(self.q_proj(x), cos, sin)  # [B, Hq, T, D]
        key = self.rotate_key(self.k_proj(x), cos, sin)  # [B, Hkv, T, D]
        value = split_heads(self.v_proj(x), self.kv_heads, self.head_dim)  # [B, Hkv, T, D]
        if cache is not None:
            key, value = cache(key, value, cache_rows)  # [B, Hkv, S, D]: all slots
        if visible.ndim == 1:
            return self.o_proj(self.attend_one(query, key, value, visible))
        return self.o_proj(self.attend(query, key, value, visible))


class LlamaMLP(nn.Cell):
    """Gated SiLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = arithmetic.linear(hidden, inner, bias, arithmetic.integers)
        self.up_proj = arithmetic.linear(hidden, inner, bias, arithmetic.integers)
        self.down_proj = arithmetic.linear(inner, hidden, bias, arithmetic.integers)

    def construct(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)  # [B, T, I]
        wide = gate.astype(ms.float32)
        return self.down_proj((wide * ops.sigmoid(wide)).astype(gate.dtype) * self.up_proj(x))


class LlamaDecoderLayer(nn.Cell):
    """Attention and MLP, each with an RMSNorm before it and a residual connection."""

    def __init__(self, config: TextConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.input_layernorm = arithmetic.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, arithmetic)
        self.post_attention_layernorm = arithmetic.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config, arithmetic)

    def construct(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, cache: Any = None, cache_rows: Tensor | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, visible, cache, cache_rows)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Cell):
    """Token embedding, layers and final norm."""

    def __init__(self, config: TextConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.embed_tokens = arithmetic.embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.CellList([LlamaDecoderLayer(config, arithmetic) for _ in range(config.num_hidden_layers)])
        self.norm = arithmetic.rms_norm(config.hidden_size, config.rms_norm_eps)

    def construct(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, caches: Any = None, cache_rows: Tensor | None = None
    ) -> Tensor:
        """Run the layers: embeddings x [B, T, H] -> hidden states [B, T, H].

        Args:
            cos, sin: rotary tables, float32 [B, 1, T, D].
            visible: the mask of the attention operator; or, to decode one token per sequence from a cache, the number
                of slots that each token attends to, int64 [B].
            caches: one LayerCache per layer; None without a cache.
            cache_rows: where the caches write the new keys and values: rows, int32 [B * Hkv * T], of a LayerCache, or
                the first slot of each sequence, int64 [B], of a ScatterCache.
        """
        for index in range(len(self.layers)):  # `enumerate` takes MindSpore a tenth of a second more to compile
            x = self.layers[index](x, cos, sin, visible, None if caches is None else caches[index], cache_rows)
        return self.norm(x)


class LlamaForCausalLM(nn.Cell):
    """LLaMA with an output layer: embeddings to logits.

    Args:
        config: configuration of the full model; only `text_config` is used.
        dtype: type of the weight matrices, "float32", "float16", or on Ascend "bfloat16", "int8" or "int4". With
            integers, embeddings and activations have `config.computes_in`, and the output layer is int8.
        operators: the device's operators; by default those of MindSpore's current device.

    Raises:
        ValueError: the dtype is unknown, or the device does not support it.

    Example:
        >>> from mindspore import Tensor
        >>> from mindone.models.share4v import Share4VConfig, TextConfig
        >>> from mindone.models.share4v.language.llama import LlamaForCausalLM
        >>> text = TextConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        ...                   num_attention_heads=4, num_key_value_heads=2)
        >>> model = LlamaForCausalLM(Share4VConfig(text_config=text))
        >>> model(model.embed(Tensor([[1, 5, 7]]))).shape
        (1, 3, 99)
    """

    allocates_cache_lazily = False

    def __init__(self, config: Share4VConfig, dtype: str = "float32", operators: DeviceOperators | None = None) -> None:
        super().__init__()
        self.config = config.text_config
        arithmetic = Arithmetic.of(dtype, operators, config.computes_in)
        self.activations = arithmetic.activations
        self.operators = arithmetic.operators
        self.model = LlamaModel(self.config, arithmetic)
        sizes = attention_sizes(self.config)
        self.attend = arithmetic.attention(*sizes)
        incremental = arithmetic.one_query_attention(*sizes)
        # Largest batch that the incremental operator decodes with slot counts instead of a mask; 0: no such operator.
        self.max_incremental_batch = 0 if incremental is None else incremental.max_batch
        if self.config.tie_word_embeddings:
            self.lm_head = None
        else:
            # No later layer averages out what its rounding loses: int8 at the least.
            integers = None if arithmetic.integers is None else "int8"
            self.lm_head = arithmetic.linear(self.config.hidden_size, self.config.vocab_size, False, integers)
        self.matmul = ops.MatMul(transpose_b=True)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> embeddings [B, T, H]."""
        return self.model.embed_tokens(ids)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> float32 logits [..., V]."""
        if self.lm_head is not None:
            return self.lm_head(hidden).astype(ms.float32)
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits = self.matmul(rows, widened(self.model.embed_tokens.weight, rows))
        return logits.reshape((*hidden.shape[:-1], self.config.vocab_size)).astype(ms.float32)

    def forward(self, inputs_embeds: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Compute logits without a cache from precomputed `tables`; training compiles this method."""
        return self.head(self.model(inputs_embeds, cos, sin, mask))

    def construct(self, inputs_embeds: Tensor, lengths: np.ndarray | None = None) -> Tensor:
        """inputs_embeds [B, T, H] of sequences of `lengths` [B] tokens, from position 0 -> float32 logits [B, T, V]."""
        batch, length = inputs_embeds.shape[:2]
        cos, sin, mask = self.tables(batch, length, lengths)
        return self.forward(inputs_embeds.astype(self.activations), cos, sin, mask)

    def tables(self, batch: int, length: int, lengths: np.ndarray | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotary tables, cos and sin [B, 1, T, D], and a causal mask for sequences padded to `length` tokens.

        `lengths` [B] are the sequences' own lengths, which dynamic rotary scaling needs; None if none is padded.
        """
        positions = np.broadcast_to(np.arange(length), (batch, length))
        cos, sin = rope_tables(self.config, positions, np.full(batch, length) if lengths is None else lengths)
        hidden = np.triu(np.ones((length, length), bool), 1)[None, None]
        return Tensor(cos), Tensor(sin), self.attend.mask(Tensor(hidden))

    def new_cached(self, batch_size: int, capacity: int) -> CachedLlama:
        """Return this model with a cache for `batch_size` sequences of up to `capacity` tokens; weights are shared."""
        return CachedLlama(self, batch_size, capacity)


def _tokens_first(embeds: Tensor, positions: np.ndarray, last: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Move the padding of each sequence behind its tokens: embeds [B, C, H], positions [B, C], last [B]."""
    order = np.argsort(positions < 0, 1, kind="stable")  # [B, C]
    if (order == np.arange(order.shape[1])).all():  # always, in this package
        return embeds, positions, last
    rows = np.arange(len(order))[:, None] * order.shape[1] + order
    moved = gather_rows(embeds.reshape(-1, embeds.shape[-1]), rows)
    return moved, np.take_along_axis(positions, order, 1), np.argsort(order, 1)[np.arange(len(order)), last]


class LayerCache(nn.Cell):
    """Keys and values of one layer, updated in place.

    Every sequence has `capacity` slots and one more, to which padding is written. Keys and values are stored as rows
    [B * Hkv * S, D], S = capacity + 1, so that one scatter over the first axis writes the tokens of a chunk wherever
    they belong, without copying the rest.
    """

    is_flat = True  # whether keys and values are stored as rows

    def __init__(self, batch_size: int, heads: int, slots: int, size: int, dtype: ms.Type) -> None:
        super().__init__()
        self.shape = (batch_size, heads, slots, size)
        self.size = size
        stored = (batch_size * heads * slots, size) if self.is_flat else self.shape
        self.key = Parameter(Tensor(np.zeros(stored, np.float32), dtype), name="key", requires_grad=False)
        self.value = Parameter(Tensor(np.zeros(stored, np.float32), dtype), name="value", requires_grad=False)
        self.write = ops.ScatterUpdate()

    def construct(self, key: Tensor, value: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Write key and value [B, Hkv, C, D] to `rows` [B * Hkv * C]; return all slots, [B, Hkv, S, D]."""
        keys = self.write(self.key, rows, key.reshape(-1, self.size))
        values = self.write(self.value, rows, value.reshape(-1, self.size))
        return keys.reshape(self.shape), values.reshape(self.shape)

    def copy_sequences(self, source: LayerCache, indices: Tensor) -> None:
        """Copy sequence `indices[i]` of `source` to sequence i, for every i."""
        for target, stored in ((self.key, source.key), (self.value, source.value)):
            rows = ops.gather(stored.reshape(source.shape[0], -1), indices, 0)
            ops.assign(target, rows.reshape(target.shape))


class ScatterCache(LayerCache):
    """Keys and values of one layer, [B, Hkv, S, D], written with the device's `kv_cache_scatter_update`.

    The operator writes as many slots as a call has tokens, from a first slot of each sequence. So there are S =
    capacity + C slots: padding after a sequence's tokens goes behind them, where nothing is valid, and the tokens of an
    idle sequence go behind the capacity.
    """

    is_flat = False

    def __init__(self, batch_size: int, heads: int, slots: int, size: int, dtype: ms.Type, operator: Any) -> None:
        super().__init__(batch_size, heads, slots, size, dtype)
        self.operator = operator

    def construct(self, key: Tensor, value: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Write key and value [B, Hkv, C, D] from slots `rows`, int64 [B]; return all slots, [B, Hkv, S, D]."""
        written = self.operator(self.key, rows, key, -2, "update")
        keys = ops.depend(self.key, written)
        written = self.operator(self.value, rows, value, -2, "update")
        return keys, ops.depend(self.value, written)


class CachedForward(nn.Cell):
    """The forward pass with a cache, which the prefill and decode graphs share."""

    def __init__(self, llama: LlamaForCausalLM, batch_size: int, capacity: int, chunk: int) -> None:
        super().__init__(auto_prefix=False)  # keep the weights' names in the model
        config = llama.config
        self.llama = llama
        self.last_rows = Rows(llama.operators.index_select)
        scatter = llama.operators.kv_cache_scatter_update
        self.scatters = scatter is not None and batch_size <= llama.operators.max_scatter_batch
        slots = capacity + (chunk if self.scatters else 1)
        shape = (batch_size, config.kv_heads, slots, config.head_size)
        layers = range(config.num_hidden_layers)
        if self.scatters:
            caches: list[nn.Cell] = [ScatterCache(*shape, llama.activations, scatter) for _ in layers]
        else:
            caches = [LayerCache(*shape, llama.activations) for _ in layers]
        self.caches = nn.CellList(caches)
        self.slot_ids = Tensor(np.arange(slots, dtype=np.int32).reshape(1, 1, 1, slots))

    def construct(
        self,
        x: Tensor,
        slots: Tensor,
        cos: Tensor,
        sin: Tensor,
        last: Tensor,
        cache_rows: Tensor,
        slot_counts: tuple[Tensor, ...],
    ) -> Tensor:
        """x [B, C, H] of tokens in `slots`, int32 [B, 1, C, 1] -> logits [B, V] of the rows `last` [B] of [B * C].

        `cache_rows` as in LlamaModel.construct. `slot_counts` is empty, or holds the number of slots that each
        sequence's single token attends to, int64 [B].
        """
        visible = slot_counts[0] if slot_counts else self.llama.attend.mask(self.slot_ids > slots)  # [B, 1, C, S]
        hidden = self.llama.model(x, cos, sin, visible, self.caches, cache_rows)  # [B, C, H]
        last_hidden = self.last_rows(hidden.reshape(-1, hidden.shape[-1]), last)  # [B, H]
        return self.llama.head(last_hidden)


class CachedGraph(Graph):
    """One compiled graph: prefill, which takes embeddings [B, C, H], or decode, which takes ids [B, 1].

    It is a cell called with `compile_and_run`, so that the graph and the cache's memory are freed together with the
    cell. MindSpore keeps what `mindspore.jit` compiles until the process ends.
    """

    def __init__(self, cached: CachedForward, takes_ids: bool) -> None:
        super().__init__()
        self.cached = cached
        self.takes_ids = takes_ids

    def construct(
        self,
        tokens: Tensor,
        slots: Tensor,
        cos: Tensor,
        sin: Tensor,
        last: Tensor,
        cache_rows: Tensor,
        *slot_counts: Tensor,
    ) -> Tensor:
        x = self.cached.llama.embed(tokens) if self.takes_ids else tokens
        return self.cached(x, slots, cos, sin, last, cache_rows, slot_counts)


class CachedLlama:
    """LLaMA with a KV cache for `batch_size` sequences; implements protocols.CachedLanguageModel.

    Every token has an explicit position, so sequences of different lengths share a batch without padding between their
    tokens: a query at position p attends to the slots 0 .. p of its own sequence. A token at position -1 is padding: it
    is computed and its result is discarded.

    Attributes:
        chunk: tokens per sequence in one prefill step.
    """

    chunk = 64  # an image of 576 patches takes nine steps; products of 64 rows are limited by arithmetic, not memory
    can_copy_prefix = False
    skips_padding = False

    def __init__(self, llama: LlamaForCausalLM, batch_size: int, capacity: int) -> None:
        self.text_config = llama.config
        self.batch_indices = np.arange(batch_size, dtype=np.int32)
        forward = CachedForward(llama, batch_size, capacity, self.chunk)
        self.caches = forward.caches
        _, heads, slots, _ = self.caches[0].shape
        first_rows = np.arange(batch_size * heads, dtype=np.int32) * slots
        self.first_rows = first_rows.reshape(batch_size, heads, 1)  # of each sequence and head, in a LayerCache
        self.capacity = capacity
        self.scatters = forward.scatters
        self.uses_slot_counts = batch_size <= llama.max_incremental_batch
        self._prefill = CachedGraph(forward, takes_ids=False)
        self._decode = CachedGraph(forward, takes_ids=True)

    def _rope_tables(self, positions: np.ndarray, totals: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return cos and sin, float32 [B, 1, C, D]; padding gets those of position 0."""
        cos, sin = rope_tables(self.text_config, np.maximum(positions, 0), totals)
        return Tensor(cos), Tensor(sin)

    def prefill(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, last: np.ndarray) -> Tensor:
        """Process one chunk of each prompt.

        Args:
            inputs_embeds: [B, C, H].
            positions: int [B, C]; -1 marks padding.
            totals: int [B], the length of each whole prompt in tokens (dynamic rotary scaling depends on it).
            last: int [B], index within the chunk of the token whose logits are returned.

        Returns:
            float32 logits [B, V].
        """
        if self.scatters:
            inputs_embeds, positions, last = _tokens_first(inputs_embeds, positions, last)
        cos, sin = self._rope_tables(positions, totals)
        last_rows = Tensor((self.batch_indices * positions.shape[1] + last).astype(np.int32))
        slots, cache_rows = self._places(positions)
        return self._prefill.compile_and_run(inputs_embeds, slots, cos, sin, last_rows, cache_rows)

    def _places(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the slots of tokens at `positions` [B, C], int32 [B, 1, C, 1], and where the caches write them.

        They are computed here because MindSpore takes a quarter of a second to compile this arithmetic.
        """
        slots = np.where(positions < 0, self.capacity, positions).astype(np.int32)  # [B, C]
        # A ScatterCache has a first slot of each sequence; idle sequences write behind the capacity.
        rows = slots[:, 0].astype(np.int64) if self.scatters else (self.first_rows + slots[:, None]).reshape(-1)
        return Tensor(slots[:, None, :, None]), Tensor(rows)

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        """Process one token of each sequence: ids and positions int [B] (-1: finished) -> float32 logits [B, V]."""
        columns = positions[:, None]  # [B, 1]
        counts = np.maximum(positions, 0).astype(np.int64) + 1
        cos, sin = self._rope_tables(columns, counts)
        tokens, last = Tensor(ids.astype(np.int32)[:, None]), Tensor(self.batch_indices)
        # Computed on the host, where the operator reads it: if the graph computed it, every layer would wait for it.
        slot_counts = (Tensor(counts),) if self.uses_slot_counts else ()
        slots, cache_rows = self._places(columns)
        return self._decode.compile_and_run(tokens, slots, cos, sin, last, cache_rows, *slot_counts)

    def copy_sequences(self, source: CachedLlama, indices: np.ndarray) -> None:
        """Copy sequence `indices[i]` of `source` (of equal capacity; may be this cache) to every sequence i."""
        chosen = Tensor(indices.astype(np.int32))
        for cache, source_cache in zip(self.caches, source.caches, strict=True):
            cache.copy_sequences(source_cache, chosen)
