"""Attention over the cache against float64, with keys and values as the cache stores them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernels import CACHE_DTYPES, attend_cache, causal, normals, rows_of, stored_keys, stored_values

from mindone.models.share4v.kernels.cache_memory import CacheMemory
from mindone.models.share4v.kernels.library import Library

# Heads, key/value heads, head_dim, tokens.
SHAPES = [
    (1, 1, 1, 1),
    (4, 4, 16, 5),
    (6, 2, 20, 37),
    (5, 1, 33, 17),
    (2, 1, 64, 100),
    (3, 3, 128, 70),
    (8, 2, 7, 145),
]


class Texts:
    """A cache, and the inputs that were written to it."""

    def __init__(self, kernels: Library, rng: np.random.Generator, heads: int, cache: CacheMemory, layer: int = 0):
        self.kernels, self.rng, self.heads, self.cache, self.layer = kernels, rng, heads, cache, layer
        self.kv_heads, self.head_dim = cache.keys.shape[2], cache.keys.shape[4]

    def inputs(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return random query [R, H, D], key and value [R, Hkv * D]."""
        wide = self.kv_heads * self.head_dim
        query = normals(self.rng, count, self.heads, self.head_dim) / np.float32(self.head_dim**0.5)
        return query, normals(self.rng, count, wide), normals(self.rng, count, wide)

    def attend(self, rows: np.ndarray, *inputs: np.ndarray) -> np.ndarray:
        """Run the kernel and compare with attention over the cache's contents."""
        query, key, value = inputs or self.inputs(len(rows))
        out = self.kernels.attention(self.cache.memory, self.layer, rows, query, key, value)
        exact = attend_cache(self.cache, self.layer, query, rows)
        assert (np.abs(out - exact.out) <= exact.tolerance).all()
        return out


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "tokens"), SHAPES)
def test_causal_attention(
    kernels: Library, rng: np.random.Generator, dtype: str, heads: int, kv_heads: int, head_dim: int, tokens: int
) -> None:
    cache = CacheMemory(3, 2, kv_heads, head_dim, tokens + 3, dtype)
    texts = Texts(kernels, rng, heads, cache, layer=1)
    inputs = texts.inputs(tokens)
    whole = texts.attend(causal(1, 0, tokens), *inputs)
    assert not cache.keys[[0, 2]].any() and not cache.keys[1, 0].any()  # other layers and texts
    again = Texts(kernels, rng, heads, CacheMemory(3, 2, kv_heads, head_dim, tokens + 3, dtype), layer=1)
    step = max(1, tokens // 3)
    pieces = [slice(first, min(tokens, first + step)) for first in range(0, tokens, step)]
    parts = [again.attend(causal(1, at.start, at.stop), *(part[at] for part in inputs)) for at in pieces]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(again.cache.memory, cache.memory)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("head_dim", [16, 21])
def test_what_the_cache_holds(kernels: Library, rng: np.random.Generator, dtype: str, head_dim: int) -> None:
    cache = CacheMemory(2, 2, 3, head_dim, 40, dtype)
    texts = Texts(kernels, rng, 3, cache, layer=1)
    query, key, value = texts.inputs(35)
    key[7], value[8] = 0, 0
    key[9] *= np.float32(1e-30)
    texts.attend(causal(1, 0, 35), query, key, value)
    for sent, held in ((key, stored_keys(cache, 1, 1)), (value, stored_values(cache, 1, 1, head_dim))):
        sent = sent.reshape(35, 3, head_dim)
        if dtype == "int8":
            size = np.abs(sent).max(-1, keepdims=True)
            assert (np.abs(held[:35] - sent) <= size / 127 * 0.50002).all()
        else:
            assert np.array_equal(held[:35], sent.astype(dtype).astype(np.float64))
        assert not held[35:].any()


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_left_padding(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    """Slots before a row's `begin` do not affect it, whatever they contain."""
    texts = Texts(kernels, rng, 4, CacheMemory(1, 3, 2, 24, 70, dtype))
    prefill = np.concatenate([causal(text, begin, 60, begin) for text, begin in ((0, 0), (1, 5), (2, 33))])
    texts.attend(prefill)
    texts.attend(rows_of((2, 60, 33, 61), (0, 60, 0, 61), (1, 60, 5, 61)))
    texts.attend(rows_of((2, 61, 61, 62), (0, 61, 48, 62), (1, 61, 47, 62)))


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_unseen_slots_may_hold_anything(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    """Slots outside begin .. end - 1 may contain data of an earlier sequence, even NaN."""
    rows = rows_of(*((0, slot, 9, slot + 1) for slot in range(9, 30)))
    caches = [CacheMemory(1, 1, 2, 20, 50, dtype) for _ in range(2)]
    held = caches[1].scales if dtype == "int8" else None
    for memory in (caches[1].keys, caches[1].values) if held is None else (held,):
        memory[:] = np.nan
    texts = [Texts(kernels, rng, 4, cache) for cache in caches]
    inputs = texts[0].inputs(len(rows))
    clean, dirty = (kernels.attention(cache.memory, 0, rows, *inputs) for cache in caches)
    assert np.isfinite(clean).all()
    assert np.array_equal(clean, dirty)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_interleaved_texts_are_the_texts_one_by_one(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    caches = [CacheMemory(1, 4, 2, 18, 40, dtype) for _ in range(2)]
    mixed, single = (Texts(kernels, rng, 6, cache) for cache in caches)
    rows = np.concatenate([causal(text, 0, 10 * text + 5) for text in range(4)])
    # Texts take turns in runs of one to twelve rows, each text's rows in order.
    turns = rng.permutation(np.repeat(np.arange(4), 14))
    runs = {text: iter(np.array_split(np.flatnonzero(rows[:, 0] == text), 14)) for text in range(4)}
    order = np.concatenate([next(runs[turn]) for turn in turns])
    inputs = mixed.inputs(len(rows))
    out = mixed.attend(rows[order], *(part[order] for part in inputs))
    for text in range(4):
        of_text = rows[:, 0] == text
        alone = single.attend(rows[of_text], *(part[of_text] for part in inputs))
        assert np.array_equal(alone, out[rows[order][:, 0] == text])
    assert np.array_equal(caches[0].memory, caches[1].memory)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_rows_read_what_earlier_calls_wrote(kernels: Library, rng: np.random.Generator, dtype: str) -> None:
    texts = Texts(kernels, rng, 2, CacheMemory(1, 2, 1, 40, 300, dtype))
    for begin, end in ((0, 130), (130, 131), (131, 200), (200, 201), (201, 300)):
        texts.attend(np.concatenate([causal(0, begin, end), causal(1, begin, end)]))


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("size", [1e-20, 30.0, 1000.0])
def test_scores_far_apart(kernels: Library, rng: np.random.Generator, dtype: str, size: float) -> None:
    """exp(score) without subtracting the maximum would overflow or underflow."""
    texts = Texts(kernels, rng, 2, CacheMemory(1, 1, 2, 16, 50, dtype))
    query, key, value = texts.inputs(50)
    rows = causal(0, 0, 50)
    out = kernels.attention(texts.cache.memory, 0, rows, query * np.float32(size), key, value)
    exact = attend_cache(texts.cache, 0, query * np.float32(size), rows)
    assert (np.abs(out - exact.out) <= exact.tolerance).all()
    assert np.isfinite(out).all()
