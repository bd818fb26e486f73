"""LLaMA over a preallocated key/value cache: prefill by chunks and one-token decode, two graphs of fixed shapes."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from .llama import LlamaForCausalLM
from .rope import rope_tables


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

    def take(self, source: LayerCache, texts: Tensor) -> None:
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
    shares_prefixes = False
    skips_idle_rows = False

    def __init__(self, llama: LlamaForCausalLM, batch_size: int, capacity: int) -> None:
        self.text_config = llama.config
        self.first_rows = np.arange(batch_size, dtype=np.int32)
        forward = CachedForward(llama, batch_size, capacity)
        self.caches = forward.caches
        self.counts_slots = batch_size <= llama.most_counted
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
        seen = (Tensor(np.maximum(positions, 0).astype(np.int64) + 1),) if self.counts_slots else ()
        return self._decode.compile_and_run(tokens, Tensor(columns), cos, sin, last, *seen)

    def take(self, source: CachedLlama, texts: np.ndarray) -> None:
        """Let text i go on from what text `texts`[i] of `source` (maybe this one) holds; capacities must be equal."""
        chosen = Tensor(texts.astype(np.int32))
        for mine, theirs in zip(self.caches, source.caches, strict=True):
            mine.take(theirs, chosen)
