"""LLaMA (Touvron et al. 2023) with grouped key/value heads, without a cache or over a preallocated KV cache.

With a cache there are two compiled graphs of fixed shapes: prefill by chunks, and decode of one token per sequence.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ..configuration import Share4VConfig, TextConfig
from ..nn.device_operators import DeviceOperators
from ..nn.fused import Arithmetic
from ..nn.layers import Embedding, Linear, widened
from .rope import Rotary, rope_tables


class LlamaAttention(nn.Cell):
    """Causal self-attention whose keys and values may come from a cache."""

    def __init__(self, config: TextConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.kv_heads, config.head_size
        hidden, bias, dtype = config.hidden_size, config.attention_bias, arithmetic.weights
        self.q_proj = Linear(hidden, self.heads * self.head_dim, bias, dtype)
        self.k_proj = Linear(hidden, self.kv_heads * self.head_dim, bias, dtype)
        self.v_proj = Linear(hidden, self.kv_heads * self.head_dim, bias, dtype)
        self.o_proj = Linear(self.heads * self.head_dim, hidden, bias, dtype)
        self.rotate_query = Rotary(self.heads, self.head_dim, arithmetic.operators)
        self.rotate_key = Rotary(self.kv_heads, self.head_dim, arithmetic.operators)
        sizes = attention_sizes(config)
        self.attend = arithmetic.attention(*sizes)
        self.attend_one: Any = arithmetic.one_query_attention(*sizes)

    def split(self, x: Tensor, heads: int) -> Tensor:
        """[B, T, H * D] -> [B, H, T, D]."""
        return x.reshape(x.shape[0], x.shape[1], heads, self.head_dim).transpose(0, 2, 1, 3)

    def construct(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, cache: Any = None, slots: Tensor | None = None
    ) -> Tensor:
        query = self.rotate_query(self.q_proj(x), cos, sin)
        key = self.rotate_key(self.k_proj(x), cos, sin)
        value = self.split(self.v_proj(x), self.kv_heads)
        if cache is not None:
            key, value = cache(key, value, slots)  # [B, Hkv, S, D]: everything kept so far
        if visible.ndim == 1:
            return self.o_proj(self.attend_one(query, key, value, visible))
        return self.o_proj(self.attend(query, key, value, visible))


def attention_sizes(config: TextConfig) -> tuple[int, int, int, int]:
    """Return what the choice of an attention goes by: heads, key/value heads, head size, most slots of a cache."""
    return config.num_attention_heads, config.kv_heads, config.head_size, config.context_length + 1


class LlamaMLP(nn.Cell):
    """The gated SiLU unit (Shazeer 2020)."""

    def __init__(self, config: TextConfig, dtype: ms.Type) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(hidden, inner, bias, dtype)
        self.up_proj = Linear(hidden, inner, bias, dtype)
        self.down_proj = Linear(inner, hidden, bias, dtype)

    def construct(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        wide = gate.astype(ms.float32)
        return self.down_proj((wide * ops.sigmoid(wide)).astype(gate.dtype) * self.up_proj(x))


class LlamaDecoderLayer(nn.Cell):
    """Attention and MLP, each behind an RMSNorm and around a residual."""

    def __init__(self, config: TextConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.input_layernorm = arithmetic.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, arithmetic)
        self.post_attention_layernorm = arithmetic.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config, arithmetic.weights)

    def construct(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, cache: Any = None, slots: Tensor | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, visible, cache, slots)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Cell):
    """Embedding, layers and the last norm."""

    def __init__(self, config: TextConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        table = config.vocab_size, config.hidden_size
        self.embed_tokens = Embedding(*table, arithmetic.weights, arithmetic.activations)
        self.layers = nn.CellList([LlamaDecoderLayer(config, arithmetic) for _ in range(config.num_hidden_layers)])
        self.norm = arithmetic.rms_norm(config.hidden_size, config.rms_norm_eps)

    def construct(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, caches: Any = None, slots: Tensor | None = None
    ) -> Tensor:
        """x [B, T, H] -> [B, T, H].

        `visible` is a mask that `attend` knows, or with a cache and one token a text the number of slots that each text
        sees, int64 [B].
        """
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, visible, None if caches is None else caches[index], slots)
        return self.norm(x)


class LlamaForCausalLM(nn.Cell):
    """A LLaMA that turns embeddings into logits.

    Args:
        config: the whole model's config; `text_config` is read.
        dtype: type of the weight matrices, "float32", "float16", or on an Ascend "bfloat16".
        operators: what the device offers; by default the row of MindSpore's device.

    Raises:
        ValueError: the dtype is not known, or the device does not compute in it.

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
        arithmetic = Arithmetic.of(dtype, operators)
        self.activations = arithmetic.activations
        self.model = LlamaModel(self.config, arithmetic)
        sizes = attention_sizes(self.config)
        self.attend = arithmetic.attention(*sizes)
        by_count = arithmetic.one_query_attention(*sizes)
        # So many texts of one token each can be attended from by their numbers of slots, in place of a mask.
        self.max_incremental_batch = 0 if by_count is None else by_count.texts
        if self.config.tie_word_embeddings:
            self.lm_head = None
        else:
            vocabulary = self.config.vocab_size
            self.lm_head = Linear(self.config.hidden_size, vocabulary, bias=False, dtype=arithmetic.weights)
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
        """Logits of whole texts without a cache, from ready tables: what training compiles."""
        return self.head(self.model(inputs_embeds, cos, sin, mask))

    def construct(self, inputs_embeds: Tensor, lengths: np.ndarray | None = None) -> Tensor:
        """inputs_embeds [B, T, H], texts of `lengths` [B] beginning at position 0 -> float32 logits [B, T, V]."""
        batch, length = inputs_embeds.shape[:2]
        cos, sin, mask = self.tables(batch, length, lengths)
        return self.forward(inputs_embeds.astype(self.activations), cos, sin, mask)

    def tables(self, batch: int, length: int, lengths: np.ndarray | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return cosines, sines [B, 1, T, D] and the causal mask, of one for all texts, padded to `length` tokens.

        `lengths` [B] are the texts' own, which dynamic rotary scaling goes by; None means that all are full.
        """
        positions = np.broadcast_to(np.arange(length), (batch, length))
        cos, sin = rope_tables(self.config, positions, np.full(batch, length) if lengths is None else lengths)
        hidden = np.triu(np.ones((length, length), bool), 1)[None, None]
        return Tensor(cos), Tensor(sin), self.attend.mask(Tensor(hidden))

    def new_cached(self, batch_size: int, capacity: int) -> CachedLlama:
        """Return this model with room for `batch_size` texts of up to `capacity` tokens, sharing the weights."""
        return CachedLlama(self, batch_size, capacity)


class LayerCache(nn.Cell):
    """Keys and values of one layer, written in place.

    Every text has `capacity` slots and one more that takes what padding writes. Rows are [B * Hkv * (capacity + 1), D],
    so that one scatter over the first axis writes a chunk wherever its tokens go, with no copy of the rest.
    """

    def __init__(self, batch: int, heads: int, slots: int, size: int, dtype: ms.Type) -> None:
        super().__init__()
        self.shape = (batch, heads, slots, size)
        self.size = size
        rows = (batch * heads * slots, size)
        self.key = Parameter(Tensor(np.zeros(rows, np.float32), dtype), name="key", requires_grad=False)
        self.value = Parameter(Tensor(np.zeros(rows, np.float32), dtype), name="value", requires_grad=False)
        self.write = ops.ScatterUpdate()

    def construct(self, key: Tensor, value: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Write key and value [B, Hkv, C, D] to `rows` [B * Hkv * C]; return all that is kept, [B, Hkv, S, D]."""
        keys = self.write(self.key, rows, key.reshape(-1, self.size))
        values = self.write(self.value, rows, value.reshape(-1, self.size))
        return keys.reshape(self.shape), values.reshape(self.shape)

    def copy_sequences(self, source: LayerCache, texts: Tensor) -> None:
        """Let text i hold what text `texts`[i] of `source` holds."""
        for mine, theirs in ((self.key, source.key), (self.value, source.value)):
            rows = ops.gather(theirs.reshape(source.shape[0], -1), texts, 0)
            ops.assign(mine, rows.reshape(mine.shape))


class CachedForward(nn.Cell):
    """The forward pass over one cache, which both graphs share."""

    def __init__(self, llama: LlamaForCausalLM, batch_size: int, capacity: int) -> None:
        super().__init__(auto_prefix=False)  # the weights keep the names they have in the model
        config = llama.config
        self.llama = llama
        self.capacity = capacity
        slots = capacity + 1
        shape = (batch_size, config.kv_heads, slots, config.head_size)
        self.caches = nn.CellList([LayerCache(*shape, llama.activations) for _ in range(config.num_hidden_layers)])
        self.slot_ids = Tensor(np.arange(slots, dtype=np.int32).reshape(1, 1, 1, slots))
        starts = np.arange(batch_size * config.kv_heads, dtype=np.int32) * slots
        self.starts = Tensor(starts.reshape(batch_size, config.kv_heads, 1))

    def construct(
        self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, last: Tensor, seen: tuple[Tensor, ...]
    ) -> Tensor:
        """x [B, C, H] at positions [B, C] -> logits [B, V] of the rows `last` [B] of [B * C].

        `seen` may hold how many slots the one token of each text sees, int64 [B].
        """
        slots = ops.select(positions < 0, ops.full_like(positions, self.capacity), positions)  # [B, C]
        rows = (self.starts + slots.expand_dims(1)).reshape(-1)  # [B * Hkv * C]
        if seen:
            visible = seen[0]
        else:
            hidden_keys = self.slot_ids > slots.reshape(slots.shape[0], 1, slots.shape[1], 1)  # [B, 1, C, S]
            visible = self.llama.attend.mask(hidden_keys)
        hidden = self.llama.model(x, cos, sin, visible, self.caches, rows)  # [B, C, H]
        wanted = ops.gather(hidden.reshape(-1, hidden.shape[-1]), last, 0)  # [B, H]
        return self.llama.head(wanted)


class CachedGraph(nn.Cell):
    """One compiled graph: prefill, which takes embeddings [B, C, H], or decode, which takes ids [B, 1].

    A cell of its own that is called by `compile_and_run`: what it compiles goes with it, the cache's memory too.
    MindSpore keeps what `mindspore.jit` compiles for as long as the process lives.
    """

    def __init__(self, cached: CachedForward, takes_ids: bool) -> None:
        super().__init__(auto_prefix=False)
        self.cached = cached
        self.takes_ids = takes_ids

    def construct(
        self, tokens: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, last: Tensor, *seen: Tensor
    ) -> Tensor:
        x = self.cached.llama.embed(tokens) if self.takes_ids else tokens
        return self.cached(x, positions, cos, sin, last, seen)


class CachedLlama:
    """Graphs over one cache of `batch_size` texts.

    Every token carries its position, so texts of unequal length stand side by side with no padding between their
    tokens: a query at position p sees the slots 0..p of its own text, whatever the others do. A token at position -1 is
    padding: it is computed and thrown away.

    Attributes:
        chunk: tokens of each text that one prefill step takes.
    """

    chunk = 64  # an image of 576 patches is nine of them, and a product of 64 rows is bound by arithmetic
    can_copy_prefix = False
    skips_padding = False

    def __init__(self, llama: LlamaForCausalLM, batch_size: int, capacity: int) -> None:
        self.text_config = llama.config
        self.first_rows = np.arange(batch_size, dtype=np.int32)
        forward = CachedForward(llama, batch_size, capacity)
        self.caches = forward.caches
        self.uses_slot_counts = batch_size <= llama.max_incremental_batch
        self._prefill = CachedGraph(forward, takes_ids=False)
        self._decode = CachedGraph(forward, takes_ids=True)

    def _tables(self, positions: np.ndarray, totals: np.ndarray) -> tuple[Tensor, Tensor]:
        cos, sin = rope_tables(self.text_config, np.maximum(positions, 0), totals)
        return Tensor(cos), Tensor(sin)

    def prefill(self, inputs_embeds: Tensor, positions: np.ndarray, totals: np.ndarray, last: np.ndarray) -> Tensor:
        """Take in one chunk of each text.

        Args:
            inputs_embeds: [B, C, H].
            positions: int [B, C]; -1 marks padding.
            totals: int [B], tokens in each whole prompt (dynamic rotary scaling depends on it).
            last: int [B], index within the chunk of the token whose logits are wanted.

        Returns:
            float32 logits [B, V].
        """
        cos, sin = self._tables(positions, totals)
        last_rows = Tensor((self.first_rows * positions.shape[1] + last).astype(np.int32))
        return self._prefill.compile_and_run(inputs_embeds, Tensor(positions.astype(np.int32)), cos, sin, last_rows)

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        """Take in one token of each text: ids and positions int [B] (-1 for a text that is done) -> logits [B, V]."""
        columns = positions.astype(np.int32)[:, None]
        cos, sin = self._tables(columns, np.maximum(positions, 0) + 1)
        tokens, last = Tensor(ids.astype(np.int32)[:, None]), Tensor(self.first_rows)
        # Made on the host, where the operator wants it: made by the graph, every layer would wait for the device.
        seen = (Tensor(np.maximum(positions, 0).astype(np.int64) + 1),) if self.uses_slot_counts else ()
        return self._decode.compile_and_run(tokens, Tensor(columns), cos, sin, last, *seen)

    def copy_sequences(self, source: CachedLlama, texts: np.ndarray) -> None:
        """Let text i go on from what text `texts`[i] of `source` (maybe this one) holds; capacities must be equal."""
        chosen = Tensor(texts.astype(np.int32))
        for mine, theirs in zip(self.caches, source.caches, strict=True):
            mine.copy_sequences(theirs, chosen)
